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
	rows        []string
	series      []series
}

// series is one rival's dots.
type series struct {
	rival string
	dots  []dot
}

type dot struct {
	row int
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
	{"far", "mbs", "far-blob", "MB/s", false},
}

// pictureOf names the picture that a workload is in.
func pictureOf(w workloadResult) string {
	for _, p := range pictured {
		if p.family == w.Family {
			return p.name
		}
	}
	return ""
}

// plots are the pictures for which there are figures, and one of memory in all
// workloads.
func plots(r results) []picture {
	var all []picture
	for _, p := range pictured {
		if pic := newPicture(r, p.name, p.title, p.log, p.key, func(w workloadResult) bool { return w.Family == p.family }); len(pic.series) > 0 {
			all = append(all, pic)
		}
	}
	return all
}

func newPicture(r results, name, title string, log bool, key string, in func(workloadResult) bool) picture {
	pic := picture{name: name, title: title, log: log}
	for _, w := range r.Workloads {
		if !in(w) || w.Skipped != "" {
			continue
		}
		row := len(pic.rows)
		pic.rows = append(pic.rows, w.Name)
		for _, rival := range w.Rivals {
			s, ok := summarize(rival.Runs, key)
			if !ok || log && s.min <= 0 {
				continue
			}
			i := slices.IndexFunc(pic.series, func(s series) bool { return s.rival == rival.Name })
			if i < 0 {
				i = len(pic.series)
				pic.series = append(pic.series, series{rival: rival.Name})
			}
			pic.series[i].dots = append(pic.series[i].dots, dot{row, s})
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

const (
	pictureWidth = 22 * vg.Centimeter
	rowHeight    = 1.1 * vg.Centimeter
	margins      = 4 * vg.Centimeter
)

// draw makes the picture as SVG.
func (p picture) draw() ([]byte, error) {
	pl := plot.New()
	pl.X.Label.Text = p.title
	pl.X.Min, pl.X.Max = 0, 0
	pl.Legend.Top = true
	pl.Legend.XOffs = vg.Centimeter / 4
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
		dots.GlyphStyle = draw.GlyphStyle{Color: palette[i%len(palette)], Radius: vg.Points(3.5), Shape: draw.CircleGlyph{}}
		bars, err := plotter.NewXErrorBars(struct {
			plotter.XYer
			plotter.XErrorer
		}{points, spread})
		if err != nil {
			return nil, err
		}
		bars.Color, bars.Width, bars.CapWidth = palette[i%len(palette)], vg.Points(1), vg.Points(4)
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
	pl.Draw(draw.New(canvas))
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("write SVG: %w", err)
	}
	return b.Bytes(), nil
}
