package main

import (
	"bytes"
	"fmt"
	"image/color"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// picture is one metric of one family: workloads from top to bottom, a dot for
// each rival where its median is, and a line from its least to its most.
type picture struct {
	name, title string
	log         bool
	unit        float64 // that figures are divided by
	rows        []string
	series      []series
}

// series is one rival's dots.
type series struct {
	rival string
	color color.RGBA // the same in all pictures
	dots  []dot
}

type dot struct {
	row    int
	failed bool // after the rounds that it is of
	summary
}

// pictured are the metrics that have a picture, by family, with what is written
// at the axis. On a logarithmic one an equal distance is an equal ratio.
var pictured = []struct {
	family, key, name, title string
	log                      bool
}{
	{"pull", "seconds", "cold-pull", "seconds until the last byte", false},
	{"herd", "max", "herd", "seconds until the slowest client has all", true},
	{"blob", "gbs", "warm-blob", "GB/s", false},
	{"manifest", "rps", "warm-manifest", "requests per second", true},
	{"ranges", "up_ratio", "cold-ranges", "bytes from upstream for each byte asked for", true},
	{"trace", "quota", "trace", "counted GETs at upstream for each manifest pulled", false},
	{"trace", "hit_bytes", "trace-hits", "share of the bytes that were hits", false},
	{"trace", "disk", "trace-disk", "most bytes on disk, of a bound that not all have", false},
	{"start", "ready", "start", "seconds until it answers", false},
	{"far", "mbs", "far-blob", "MB/s", false},
}

// picturesOf names the pictures that a workload is in.
func picturesOf(w workloadResult) (all []string) {
	for _, p := range pictured {
		if p.family == w.Family {
			all = append(all, p.name)
		}
	}
	return all
}

// plots are the pictures for which there are figures.
func plots(r results) []picture {
	var all []picture
	add := func(pic picture) {
		if len(pic.series) > 0 {
			all = append(all, pic)
		}
	}
	add(newPicture(r, picture{name: memoryPicture, title: "MiB of anonymous memory", log: true, unit: 1 << 20}, "anon", func(workloadResult) bool { return true }))
	for _, p := range pictured {
		add(newPicture(r, picture{name: p.name, title: p.title, log: p.log, unit: 1}, p.key, func(w workloadResult) bool { return w.Family == p.family }))
	}
	return all
}

// memoryPicture is of all workloads.
const memoryPicture = "memory"

// newPicture fills in a picture of one metric.
func newPicture(r results, pic picture, key string, in func(workloadResult) bool) picture {
	for _, w := range r.Workloads {
		if !in(w) || w.Skipped != "" {
			continue
		}
		row := len(pic.rows)
		pic.rows = append(pic.rows, w.Name)
		for _, rival := range w.Rivals {
			s, ok := summarize(rival.Runs, key)
			if !ok || pic.log && s.min <= 0 {
				continue
			}
			s.median, s.min, s.max = s.median/pic.unit, s.min/pic.unit, s.max/pic.unit
			i := slices.IndexFunc(pic.series, func(s series) bool { return s.rival == rival.Name })
			if i < 0 {
				i = len(pic.series)
				pic.series = append(pic.series, series{rival: rival.Name, color: colorOf(r, rival.Name)})
			}
			pic.series[i].dots = append(pic.series[i].dots, dot{row, rival.Failed != "", s})
		}
	}
	return pic
}

// palette is told apart by people who see colours differently (Okabe and Ito).
var palette = []color.RGBA{
	{0xd5, 0x5e, 0x00, 0xff},
	{0x00, 0x00, 0x00, 0xff},
	{0x56, 0xb4, 0xe9, 0xff},
	{0x00, 0x72, 0xb2, 0xff},
	{0x00, 0x9e, 0x73, 0xff},
	{0xe6, 0x9f, 0x00, 0xff},
	{0xcc, 0x79, 0xa7, 0xff},
	{0x99, 0x99, 0x99, 0xff},
}

func colorOf(r results, rival string) color.RGBA {
	i := slices.IndexFunc(r.Rivals, func(info rivalInfo) bool { return info.Name == rival })
	return palette[max(i, 0)%len(palette)]
}

const (
	pictureWidth = 22 * vg.Centimeter
	rowHeight    = 1.1 * vg.Centimeter
	margins      = 4 * vg.Centimeter
	edge         = vg.Centimeter / 4
)

func (p picture) hasFailures() bool {
	return slices.ContainsFunc(p.series, func(s series) bool { return slices.ContainsFunc(s.dots, func(d dot) bool { return d.failed }) })
}

// draw makes the picture as SVG.
func (p picture) draw() ([]byte, error) {
	pl := plot.New()
	pl.X.Label.Text = p.title
	if p.hasFailures() {
		pl.X.Label.Text += " (×: it failed later)"
	}
	pl.X.Min, pl.X.Max = 0, 0
	pl.Legend.Top = true
	names := slices.Clone(p.rows)
	slices.Reverse(names) // the first on top
	pl.NominalY(names...)
	grid := plotter.NewGrid()
	grid.Horizontal.Color = nil
	pl.Add(grid)
	low, high := 0.0, 0.0
	for i, s := range p.series {
		points := make(plotter.XYs, len(s.dots))
		spread := make(plotter.XErrors, len(s.dots))
		for n, d := range s.dots {
			// Rivals lie a little below each other, so that equal ones are seen.
			y := float64(len(p.rows)-1-d.row) + 0.3 - 0.6*float64(i)/float64(max(1, len(p.series)-1))
			points[n] = plotter.XY{X: d.median, Y: y}
			spread[n].Low, spread[n].High = d.median-d.min, d.max-d.median
			if low == 0 || d.min < low {
				low = d.min
			}
			high = max(high, d.max)
		}
		dots, err := plotter.NewScatter(points)
		if err != nil {
			return nil, err
		}
		dots.GlyphStyle = draw.GlyphStyle{Color: s.color, Radius: vg.Points(3.5), Shape: draw.CircleGlyph{}}
		dots.GlyphStyleFunc = func(n int) draw.GlyphStyle {
			style := dots.GlyphStyle
			if s.dots[n].failed {
				style.Radius, style.Shape = vg.Points(5), draw.CrossGlyph{}
			}
			return style
		}
		bars, err := plotter.NewXErrorBars(struct {
			plotter.XYer
			plotter.XErrorer
		}{points, spread})
		if err != nil {
			return nil, err
		}
		bars.Color, bars.Width, bars.CapWidth = s.color, vg.Points(1), vg.Points(4)
		pl.Add(bars, dots)
		pl.Legend.Add(s.rival, dots)
	}
	pl.X.Min, pl.X.Max = 0, high*1.35 // room for the legend
	if p.log {
		pl.X.Scale, pl.X.Tick.Marker = plot.LogScale{}, plot.LogTicks{Prec: -1}
		pl.X.Min, pl.X.Max = low/1.3, high*6
	}
	pl.Y.Min, pl.Y.Max = -0.5, float64(len(p.rows))-0.5
	height := margins + rowHeight*vg.Length(max(len(p.rows), 3))
	canvas := vgsvg.New(pictureWidth, height)
	pl.Draw(draw.Crop(draw.New(canvas), edge, -edge, edge, -edge))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("write SVG: %w", err)
	}
	return b.Bytes(), nil
}
