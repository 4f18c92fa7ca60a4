"""What an accepted answer costs along its whole path, against the vendors' bill; ROI; the articles' worked examples."""

from models.cost.compare import BreakEven, Swing, break_even, payback_months, tornado
from models.cost.forecast import Forecast, load_forecast
from models.cost.path import Part, PathCost, path_cost

__all__ = [
    "BreakEven",
    "Forecast",
    "Part",
    "PathCost",
    "Swing",
    "break_even",
    "load_forecast",
    "path_cost",
    "payback_months",
    "tornado",
]
