# An app that takes its time, and keeps a list of its runs.

import os
import time

from bokeh.io import curdoc
from bokeh.models import Div

arguments = curdoc().session_context.request.arguments
visit = arguments["visit"][0].decode()
time.sleep(0.3)
with open(os.environ["RUNS"], "a") as runs:
    print(visit, os.environ["SERVER"], file=runs)
curdoc().add_root(Div(text=visit))
