// This file holds the plot: how long until ready, of every peer at every work.

package main

import (
	"errors"
	"image/color"
	"math"
	"os"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

var (
	// grey can be read on white and on black.
	grey = color.NRGBA{0x80, 0x88, 0x90, 0xff}
	// ourColour stands out on both.
	ourColour = color.NRGBA{0xe8, 0x59, 0x0c, 0xff}
	// families are the colours of the peers by the first part of their name.
	families = map[string]color.Color{
		"central": grey,
		"haproxy": color.NRGBA{0x2f, 0x9e, 0x44, 0xff},
		"nginx":   color.NRGBA{0x86, 0x5e, 0xd6, 0xff},
		"caddy":   color.NRGBA{0x22, 0x8b, 0xe6, 0xff},
		ours:      ourColour,
	}
	shapes = []draw.GlyphDrawer{
		draw.CircleGlyph{}, draw.PyramidGlyph{}, draw.BoxGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}, draw.RingGlyph{},
	}
)

// extraMarks is at how many works a peer that is not among the usual ones must have been to be drawn.
const extraMarks = 4

// drawPlot writes an SVG with a line for each work and a mark for each peer. A peer that fails too often has none.
func drawPlot(file string, all []*summary) error {
	all = slices.Clone(all)
	all = slices.DeleteFunc(all, func(s *summary) bool { return !s.work.comparesPeers() })
	slices.Reverse(all) // the first one on top
	p := newPlot()
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.work.name
	}
	p.NominalY(names...)
	greyAxis(&p.X)
	greyAxis(&p.Y)
	used := map[string]int{}
	var layers []plot.Plotter
	for _, peer := range peers {
		marks := marksOf(all, peer.name)
		if len(marks) == 0 || peer.extra && len(marks) < extraMarks {
			continue
		}
		s, err := plotter.NewScatter(marks)
		if err != nil {
			return err
		}
		family := familyOf(peer.name)
		s.GlyphStyle = draw.GlyphStyle{Color: families[family], Radius: vg.Points(3.5), Shape: shapes[used[family]%len(shapes)]}
		if peer.name == ours {
			s.Radius = vg.Points(6)
		}
		used[family]++
		layers = append(layers, s)
		p.Legend.Add(peer.name, s)
	}
	slices.Reverse(layers) // ours hides nobody
	p.Add(layers...)
	p.X.Min, p.X.Max = 0.8*p.X.Min, 1.2*p.X.Max
	p.Y.Min, p.Y.Max = -0.5, float64(len(all))-0.5
	return save(p, file)
}

// save draws the legend to the right of the plot, where it hides nothing.
func save(p *plot.Plot, file string) error {
	const width, height, legendWidth, margin = 9.5 * vg.Inch, 6 * vg.Inch, 2.4 * vg.Inch, 0.3 * vg.Inch
	c := vgsvg.New(width, height)
	all := draw.New(c)
	p.Legend.Draw(draw.Crop(all, width-legendWidth, 0, 0, 0))
	p.Legend = plot.NewLegend()
	p.Draw(draw.Crop(all, margin, -legendWidth, 0, 0))
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = c.WriteTo(f)
	return errors.Join(err, f.Close())
}

func newPlot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = color.Transparent
	p.X.Label.Text = "seconds until the page is ready, 99 of 100 visits (logarithmic)"
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = plot.TickerFunc(roundTicks)
	p.Legend.TextStyle.Color = grey
	p.Legend.Padding = vg.Points(2)
	p.Legend.Top, p.Legend.Left = true, true
	grid := plotter.NewGrid()
	grid.Vertical.Color = color.NRGBA{0x80, 0x88, 0x90, 0x50}
	grid.Horizontal.Color = color.NRGBA{0x80, 0x88, 0x90, 0x50}
	p.Add(grid)
	return p
}

func greyAxis(a *plot.Axis) {
	a.Color = grey
	a.Tick.Color = grey
	a.Label.TextStyle.Color = grey
	a.Tick.Label.Color = grey
	a.Padding = vg.Points(6)
}

// roundTicks are 1, 2 and 5 of each power of ten.
func roundTicks(least, most float64) (ticks []plot.Tick) {
	for e := math.Floor(math.Log10(least)); e <= math.Log10(most); e++ {
		for _, f := range []float64{1, 2, 5} {
			if v := f * math.Pow(10, e); v >= least && v <= most {
				ticks = append(ticks, plot.Tick{Value: v, Label: seconds(v)})
			}
		}
	}
	return ticks
}

// marksOf returns p99 of a peer at all works.
func marksOf(all []*summary, peer string) (marks plotter.XYs) {
	for i, s := range all {
		if p99 := s.get(peer, ready99).median; p99 > 0 && p99 < visitLimit.Seconds() {
			marks = append(marks, plotter.XY{X: p99, Y: float64(i)})
		}
	}
	return marks
}

func familyOf(peer string) string {
	for name := range families {
		if strings.HasPrefix(peer, name) {
			return name
		}
	}
	return "central"
}
