"""The counter as a Panel app that reconnects."""

import panel as pn
from counting import counter

pn.extension(reconnect=True)
pn.pane.Bokeh(counter()).servable()
