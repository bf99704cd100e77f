package warm

import (
	"fmt"
	"strings"
	"time"
)

// Window is a time of each day, by the clock of the place. The zero value is the
// whole day.
type Window struct {
	from, to clock
}

// clock is a time of day in minutes.
type clock int

// ParseWindow reads "22:00-06:00": from the first minute on, up to the last.
func ParseWindow(s string) (Window, error) {
	from, to, ok := strings.Cut(s, "-")
	w := Window{}
	var err error
	if ok {
		if w.from, err = parseClock(strings.TrimSpace(from)); err == nil {
			w.to, err = parseClock(strings.TrimSpace(to))
		}
	}
	if !ok || err != nil || w.from == w.to {
		return Window{}, fmt.Errorf("%.100q is not a time of day: want its start and its end, such as 22:00-06:00", s)
	}
	return w, nil
}

func parseClock(s string) (clock, error) {
	t, err := time.Parse("15:04", s)
	return clock(t.Hour()*60 + t.Minute()), err
}

func (c clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

// String is the inverse of ParseWindow; empty for the whole day.
func (w Window) String() string {
	if w == (Window{}) {
		return ""
	}
	return w.from.String() + "-" + w.to.String()
}

// wait is how long it is until the window is open; 0 while it is.
func (w Window) wait(now time.Time) time.Duration {
	at := clock(now.Hour()*60 + now.Minute())
	switch {
	case w == (Window{}), w.from < w.to && w.from <= at && at < w.to, w.from > w.to && (at >= w.from || at < w.to):
		return 0
	}
	opens := time.Date(now.Year(), now.Month(), now.Day(), int(w.from)/60, int(w.from)%60, 0, 0, now.Location())
	if !opens.After(now) {
		opens = opens.AddDate(0, 0, 1)
	}
	return opens.Sub(now)
}
