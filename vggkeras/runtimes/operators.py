"""Refuse a SavedModel that has operators which could touch files, sockets or Python.

A SavedModel is a program. Its operators are read from saved_model.pb, before TensorFlow loads it,
and compared with lists of harmless ones: what exported classifiers contain, and mathematics.
TensorFlow's own flags would not do: it registers ReadFile as stateless.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vggkeras.errors import InputError

# Operators that compute from tensors and variables alone: mathematics, lists of tensors, random
# numbers, control flow, variables.
_HARMLESS = """
Abs Acos Acosh Add AddN AddV2 All Any ArgMax ArgMin Asin Asinh Atan Atan2 Atanh AvgPool AvgPool3D
BatchMatMul BatchMatMulV2 BatchMatMulV3 BatchToSpaceND BiasAdd Bitcast BroadcastArgs BroadcastTo
Bucketize Cast Ceil CheckNumerics ClipByValue Complex Concat ConcatV2 Conj Const Conv2D
Conv2DBackpropInput Conv3D Conv3DBackpropInputV2 Cos Cosh CropAndResize Cross Cumprod Cumsum
DepthToSpace DepthwiseConv2dNative Dequantize Diag DiagPart Div DivNoNan DynamicPartition
DynamicStitch Einsum Elu EmptyTensorList EnsureShape Equal Erf Erfc Erfinv Exp ExpandDims Expm1
FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars FakeQuantWithMinMaxVarsPerChannel FFT FFT2D Fill
Floor FloorDiv FloorMod FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 Gather GatherNd GatherV2
Greater GreaterEqual HSVToRGB Identity IdentityN IFFT IFFT2D Imag InTopKV2 Inv InvertPermutation
IRFFT IRFFT2D IsFinite IsInf IsNan L2Loss LeakyRelu LeftShift Less LessEqual Lgamma LinSpace Log
Log1p LogicalAnd LogicalNot LogicalOr LogSoftmax LRN MatMul MatrixBandPart MatrixDiag
MatrixDiagPart MatrixDiagPartV3 MatrixDiagV3 MatrixInverse MatrixSetDiagV3 MatrixTriangularSolve
Max Maximum MaxPool MaxPool3D MaxPoolV2 Mean Min Minimum MirrorPad Mod Mul MulNoNan Neg NextAfter
NonMaxSuppressionV3 NonMaxSuppressionV4 NonMaxSuppressionV5 NotEqual OneHot OnesLike Pack Pad
PadV2 ParallelDynamicStitch Placeholder PlaceholderWithDefault Pow PreventGradient Prod QuantizeV2
Range Rank Real RealDiv Reciprocal Relu Relu6 Reshape ResizeArea ResizeBicubic ResizeBilinear
ResizeNearestNeighbor Reverse ReverseSequence ReverseV2 RFFT RFFT2D RGBToHSV RightShift Rint Roll
Round Rsqrt ScaleAndTranslate ScatterNd SegmentMax SegmentMean SegmentMin SegmentProd SegmentSum
Select SelectV2 Selu Shape ShapeN Sigmoid Sign Sin Sinh Size Slice Snapshot Softmax Softplus
Softsign SpaceToBatchND SpaceToDepth Split SplitV Sqrt Square SquaredDifference Squeeze
StopGradient StridedSlice Sub Sum Tan Tanh TensorScatterAdd TensorScatterUpdate Tile TopK TopKV2
Transpose TruncateDiv TruncateMod Unique UniqueV2 Unpack UnravelIndex UnsortedSegmentMax
UnsortedSegmentMin UnsortedSegmentProd UnsortedSegmentSum Where Xdivy Xlog1py Xlogy ZerosLike

TensorListConcatV2 TensorListElementShape TensorListFromTensor TensorListGather TensorListGetItem
TensorListLength TensorListPopBack TensorListPushBack TensorListReserve TensorListResize
TensorListScatterV2 TensorListSetItem TensorListSplit TensorListStack

Multinomial RandomStandardNormal RandomUniform RandomUniformInt StatelessMultinomial
StatelessRandomGetAlg StatelessRandomGetKeyCounter StatelessRandomGetKeyCounterAlg
StatelessRandomNormalV2 StatelessRandomUniformIntV2 StatelessRandomUniformV2
StatelessTruncatedNormalV2 TruncatedNormal

Assert Case If NoOp PartitionedCall StatefulPartitionedCall StatelessCase StatelessIf
StatelessWhile While

AssignAddVariableOp AssignSubVariableOp AssignVariableOp DisableCopyOnRead ReadVariableOp
ResourceGather ResourceGatherNd VarHandleOp VariableShape VarIsInitializedOp
"""
HARMLESS = frozenset(_HARMLESS.split())
# What TensorFlow's own functions for checkpoints consist of besides. Loading calls none of them
# (its Python code restores the variables), so no function that a model can call may have them.
_CHECKPOINTS = "MergeV2Checkpoints RestoreV2 SaveV2 ShardedFilename StaticRegexFullMatch StringJoin"
CHECKPOINTS = frozenset(_CHECKPOINTS.split())


def check_operators(path: Path) -> None:
    """Check that no operator of a SavedModel could touch files, sockets or Python.

    Raises:
        InputError (a ValueError): one could, or is unknown; saved_model.pb cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    except (DecodeError, OSError) as error:
        raise InputError(
            f"{path} cannot be loaded as a SavedModel ({error}): export it again."
        ) from error
    is_tensorflow_2 = len(model.meta_graphs) == 1  # as its loader decides, too
    refused = {name for graph in model.meta_graphs for name in _refused(graph, is_tensorflow_2)}
    if refused:
        names = ", ".join(repr(name)[1:-1] for name in sorted(refused)[:10])
        raise InputError(
            f"{path} has operators that may touch files, sockets or Python ({names[:300]}): "
            "expected a network's alone; if you trust who wrote it, give --trust-saved-model "
            "(trust_saved_model=True)."
        )


def _refused(meta_graph: Any, is_tensorflow_2: bool) -> Iterator[str]:
    """Yield the operators of a MetaGraphDef that are not harmless where they are."""
    functions = {
        function.signature.name: function for function in meta_graph.graph_def.library.function
    }
    called = _called(meta_graph.object_graph_def, functions)
    nothing: frozenset[str] = frozenset()
    for name, function in functions.items():
        extra = nothing if name in called else CHECKPOINTS
        yield from {node.op for node in function.node_def} - HARMLESS - extra
    # TensorFlow 2 does not run the graph around the functions; of TensorFlow 1 it is the model.
    is_outside = is_tensorflow_2 and meta_graph.HasField("object_graph_def")
    extra = CHECKPOINTS if is_outside else nothing
    yield from {node.op for node in meta_graph.graph_def.node} - HARMLESS - extra


def _called(objects: Any, functions: dict[str, Any]) -> set[str]:
    """Return the functions that loading or calling a model can run, by way of others too."""
    # TensorFlow may put one function in another's place if both implement the same interface.
    unread = [name for name, f in functions.items() if "api_implements" in f.attr]
    unread += objects.concrete_functions
    for node in objects.nodes:
        unread += node.function.concrete_functions
        unread.append(node.bare_concrete_function.concrete_function_name)
    called: set[str] = set()
    while unread:
        name = unread.pop()
        if name in functions and name not in called:
            called.add(name)
            for node in functions[name].node_def:
                for value in node.attr.values():
                    unread += [value.func.name, *(named.name for named in value.list.func)]
    return called
