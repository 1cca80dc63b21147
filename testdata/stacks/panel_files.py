"""The counter beside a table and a file to download, whose parts come from Panel's own extensions."""

import io

import pandas as pd
import panel as pn
from counting import counter

pn.extension("tabulator", reconnect=True)
pn.Column(
    pn.pane.Bokeh(counter()),
    pn.widgets.Tabulator(pd.DataFrame({"a": [1, 2, 3]}), name="table"),
    pn.widgets.FileDownload(callback=lambda: io.StringIO("what the file holds"), filename="file.txt"),
).servable()
