"""How the figures of every report look, as settings of matplotlib."""

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "svg.fonttype": "path",
    # The same figures give the same bytes.
    "svg.hashsalt": "amnestic",
}
