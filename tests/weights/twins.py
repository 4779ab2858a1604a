"""The VGG networks as torchvision and timm lay them out, in torch, without code of vggkeras."""

from __future__ import annotations

import torch
from torch import nn

CONVOLUTIONS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def features(name: str, width: float) -> nn.Sequential:
    depth, _, norm = name.partition("_")
    layers, channels = [], 3
    for count, filters in zip(CONVOLUTIONS[depth], (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers.append(nn.Conv2d(channels, round(filters * width), 3, padding=1))
            channels = round(filters * width)
            if norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU())
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class Torchvision(nn.Module):
    """Layers features.N, avgpool, classifier.0/3/6. A side of 7 x 32 px is torchvision's own."""

    def __init__(
        self, name: str, width: float = 1.0, units: int = 4096, classes: int = 1000, grid: int = 7
    ) -> None:
        super().__init__()
        self.features = features(name, width)
        self.avgpool = nn.AdaptiveAvgPool2d(grid)
        last = round(512 * width) * grid * grid
        self.classifier = nn.Sequential(
            nn.Linear(last, units),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(units, units),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(units, classes),
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class Timm(nn.Module):
    """The FC layers are convolutions there: pre_logits.fc1, pre_logits.fc2, head.fc."""

    def __init__(
        self, name: str, width: float = 1.0, units: int = 4096, classes: int = 1000, grid: int = 7
    ) -> None:
        super().__init__()
        self.features = features(name, width)
        self.pre_logits = nn.ModuleDict(
            {"fc1": nn.Conv2d(round(512 * width), units, grid), "fc2": nn.Conv2d(units, units, 1)}
        )
        self.head = nn.ModuleDict({"fc": nn.Linear(units, classes)})

    def forward(self, x):
        x = self.features(x)
        for layer in self.pre_logits.values():
            x = layer(x).relu()
        return self.head["fc"](x.mean((2, 3)))


def randomized(net: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics drawn so that signals keep their size and no two numbers are alike."""
    random = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            inputs = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / inputs) ** 0.5, generator=random)
            module.bias.data.normal_(0, 0.1, generator=random)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=random)
            module.bias.data.normal_(0, 0.1, generator=random)
            module.running_mean.normal_(0, 0.1, generator=random)
            module.running_var.uniform_(0.5, 1.5, generator=random)
            module.num_batches_tracked.fill_(7)
    return net.eval()


def logits(net: nn.Module, images):
    """Class scores [N, classes] of uint8 RGB images [N, H, W, 3], as ToTensor and Normalize do."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32) / 255
    x = (x - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)
    with torch.no_grad():
        return net(x).numpy()
