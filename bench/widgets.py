# A page of three widgets, which asks for five scripts.

from bokeh.io import curdoc
from bokeh.models import ColumnDataSource, DataTable, Slider, TableColumn
from bokeh.plotting import figure

source = ColumnDataSource({"x": [1, 2, 3], "y": [4, 6, 5]})
plot = figure(width=400, height=300, title=r"$$y = f(x)$$", output_backend="webgl")
plot.line("x", "y", source=source)
curdoc().add_root(plot)
curdoc().add_root(DataTable(source=source, columns=[TableColumn(field="x"), TableColumn(field="y")]))
curdoc().add_root(Slider(start=0, end=10, value=1))
