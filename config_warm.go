package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"entrepot/oci"
	"entrepot/warm"
	"entrepot/words"
)

// What is said of images that are to be here before anybody asks for them.

const (
	warmVar     = "ENTREPOT_WARM"
	warmFileVar = "ENTREPOT_WARM_FILE"
)

// ImageNames is a comma-separated list of images, named as clients do.
type ImageNames []string

func (n *ImageNames) UnmarshalText(text []byte) (err error) {
	*n, err = parseList(string(text), func(item string) (string, error) { return item, nil })
	return err
}

func (n ImageNames) String() string { return joinList(n) }

// PlatformNames are the platforms of the images that are kept warm.
type PlatformNames struct{ warm.Platforms }

func (p *PlatformNames) UnmarshalText(text []byte) (err error) {
	p.Platforms, err = warm.ParsePlatforms(string(text))
	return err
}

// DayWindow is a time of each day.
type DayWindow struct{ warm.Window }

func (w *DayWindow) UnmarshalText(text []byte) (err error) {
	w.Window, err = warm.ParseWindow(string(text))
	return err
}

// leastWarmEvery is the shortest interval of a list of its own.
const leastWarmEvery = Duration(30 * time.Second)

func (c *Config) checkWarm(found *problems) {
	if c.WarmEvery > 0 && c.WarmEvery < leastWarmEvery {
		found.add("ENTREPOT_WARM_EVERY", "%s is too often: want %s or more, or 0s to check each tag before its TTL ends", c.WarmEvery, leastWarmEvery)
	}
	if len(c.Warm) > 0 && c.WarmFile != "" {
		found.add(warmFileVar, "is set, and %s as well: want one of them", warmVar)
	}
	if found.concern("ENTREPOT_UPSTREAMS", "ENTREPOT_UPSTREAM_", "ENTREPOT_DEFAULT_UPSTREAM", "ENTREPOT_RULE_", warmVar, warmFileVar) {
		return // names cannot be told
	}
	name := warmVar
	if c.WarmFile != "" {
		name = warmFileVar
	}
	_, err := newWarmList(c).read()
	if _, some := errors.AsType[*leftOut](err); err != nil && (name == warmVar || !some) {
		found.add(name, "%v", err)
	}
}

// aboutWarm is a warning of what is no image in the file: that is no reason not to serve.
func (c *Config) aboutWarm() []string {
	if c.WarmFile == "" {
		return nil
	}
	if _, err := newWarmList(c).read(); err != nil {
		return []string{fmt.Sprintf("%s: %v", warmFileVar, err)}
	}
	return nil
}

// leftOut is why some of a list is no image, or too much.
type leftOut struct {
	why   string // of the first
	place string // of it; empty if the list has none
	more  int    // lines
	over  string // that there is too much; empty if there is not
}

func (l *leftOut) Error() string {
	var all []string
	if l.over != "" {
		all = append(all, l.over)
	}
	if l.why != "" {
		all = append(all, l.lines())
	}
	return strings.Join(all, "; ")
}

// lines says why before where, whose path may be long.
func (l *leftOut) lines() string {
	var places []string
	if l.place != "" {
		places = append(places, l.place)
	}
	if l.more > 0 {
		places = append(places, "and "+words.Count(l.more, "line")+" more")
	}
	if len(places) == 0 {
		return l.why
	}
	return l.why + " (" + strings.Join(places, ", ") + ")"
}

func (l *leftOut) add(place, format string, args ...any) {
	if l.why == "" {
		l.why, l.place = fmt.Sprintf(format, args...), place
		return
	}
	l.more++
}

// warmList is the list of images to keep warm. It is for one goroutine.
type warmList struct {
	names  *oci.Names
	inline ImageNames
	file   string // empty: inline has them
	images []warm.Image
	err    error       // what of file was left out
	seen   os.FileInfo // file as images were read from it; nil if it was not
}

func newWarmList(c *Config) *warmList {
	return &warmList{names: c.Names(), inline: c.Warm, file: string(c.WarmFile)}
}

// read is the list as it is now, with a leftOut of what is no image. A file that has
// not changed is not read again.
func (l *warmList) read() ([]warm.Image, error) {
	if l.file == "" {
		return parseImages(l.names, l.inline, "")
	}
	now, err := os.Stat(l.file)
	if err != nil {
		return nil, fromHere(l.file, err)
	}
	if l.seen != nil && os.SameFile(now, l.seen) && now.ModTime().Equal(l.seen.ModTime()) && now.Size() == l.seen.Size() {
		return l.images, l.err
	}
	images, err := readImages(l.names, l.file)
	if _, some := errors.AsType[*leftOut](err); err != nil && !some {
		return nil, err
	}
	l.images, l.err, l.seen = images, err, now
	return images, err
}

// byteOrderMark is what some editors begin a text with.
const byteOrderMark = "\ufeff"

// readImages reads a file with one image in a line, but for a leftOut. A # begins a
// comment.
func readImages(names *oci.Names, file string) ([]warm.Image, error) {
	content, err := readSmallFile(file)
	if err != nil {
		return nil, err
	}
	return parseImages(names, strings.Split(strings.TrimPrefix(string(content), byteOrderMark), "\n"), "file "+words.Quote(file))
}

// parseImages reads one image of each line, but for a leftOut; where says what they are
// lines of.
func parseImages(names *oci.Names, lines []string, where string) (images []warm.Image, err error) {
	var out leftOut
	seen := map[warm.Image]bool{}
	for i, line := range lines {
		text, _, _ := strings.Cut(line, "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		im, err := warm.ParseImage(names, text)
		switch {
		case err != nil && where != "":
			out.add(fmt.Sprintf("line %d of %s", i+1, where), "%s: %s", words.Quote(text), oci.Reason(err))
		case err != nil:
			out.add("", "%s: %s", words.Quote(text), oci.Reason(err))
		case !seen[im]:
			seen[im] = true
			images = append(images, im)
		}
	}
	if n := len(images); n > warm.MaxImages {
		images = images[:warm.MaxImages]
		out.over = fmt.Sprintf("there are %d images: want %d at most", n, warm.MaxImages)
		if where != "" {
			out.over += " (" + where + ")"
		}
	}
	if out == (leftOut{}) {
		return images, nil
	}
	return images, &out
}
