"""Turn a data string into splits of labeled images, decode them, and augment them (section 3.1)."""

from vggkeras.data.sources import load_data as load_data
from vggkeras.data.splits import Data as Data
from vggkeras.data.splits import Split as Split
