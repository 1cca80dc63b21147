"""The counter beside a widget of ipywidgets, whose files a server has only once it has built a page."""

import ipywidgets
import panel as pn
from counting import counter

pn.extension("ipywidgets", reconnect=True)
pn.Column(pn.pane.Bokeh(counter()), pn.pane.IPyWidget(ipywidgets.FloatSlider(description="slider"))).servable()
