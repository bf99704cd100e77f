package main

import (
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
	if _, err := newWarmList(c).read(); err != nil {
		found.add(name, "%v", err)
	}
}

// warmList is the list of images to keep warm. It is for one goroutine.
type warmList struct {
	names  *oci.Names
	inline ImageNames
	file   string // empty: inline has them
	images []warm.Image
	seen   os.FileInfo // file as images were read from it; nil if it was not
}

func newWarmList(c *Config) *warmList {
	return &warmList{names: c.Names(), inline: c.Warm, file: string(c.WarmFile)}
}

// read is the list as it is now. A file that has not changed is not read again.
func (l *warmList) read() ([]warm.Image, error) {
	if l.file == "" {
		return parseImages(l.names, l.inline, "")
	}
	now, err := os.Stat(l.file)
	if err != nil {
		return nil, err
	}
	if l.seen != nil && os.SameFile(now, l.seen) && now.ModTime().Equal(l.seen.ModTime()) && now.Size() == l.seen.Size() {
		return l.images, nil
	}
	images, err := readImages(l.names, l.file)
	if err != nil {
		return nil, err
	}
	l.images, l.seen = images, now
	return images, nil
}

// readImages reads a file with one image in a line. A # begins a comment.
func readImages(names *oci.Names, file string) ([]warm.Image, error) {
	content, err := readSmallFile(file)
	if err != nil {
		return nil, err
	}
	return parseImages(names, strings.Split(string(content), "\n"), " of file "+words.Quote(file))
}

// parseImages reads one image of each line; where says what they are lines of.
func parseImages(names *oci.Names, lines []string, where string) ([]warm.Image, error) {
	var images []warm.Image
	seen := map[warm.Image]bool{}
	for i, line := range lines {
		text, _, _ := strings.Cut(line, "#")
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		im, err := warm.ParseImage(names, text)
		switch {
		case err != nil && where != "":
			return nil, fmt.Errorf("line %d%s: %s: %w", i+1, where, words.Quote(text), err)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", words.Quote(text), err)
		case !seen[im]:
			seen[im] = true
			images = append(images, im)
		}
	}
	if len(images) > warm.MaxImages {
		return nil, fmt.Errorf("there are %d images%s: want %d at most", len(images), where, warm.MaxImages)
	}
	return images, nil
}
