"""Gives NumPy a name back that Bokeh 3.0 uses."""

import numpy

numpy.bool8 = numpy.bool_
