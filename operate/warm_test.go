package operate

import (
	"testing"
	"time"

	"entrepot/admin"
)

// What an image waits for is said again when that takes much longer than was said, and
// ever more seldom.
func TestWaitsAreTold(t *testing.T) {
	w, now, said := newWaits(), time.Now(), 0
	for minute := range 60 { // it is tried every minute
		if w.isNews(admin.Warming{Waiting: "down", Until: now.Add(time.Duration(minute) * time.Minute)}) {
			said++
		}
		if w.isNews(admin.Warming{}) {
			t.Error("it is said to wait for nothing")
		}
	}
	if want := 6; said != want { // after 0, 1, 3, 7, 15, 31 minutes
		t.Errorf("said %d times in an hour, want %d", said, want)
	}
	if !w.isNews(admin.Warming{Waiting: "limited", Until: now.Add(time.Hour)}) || w.isNews(admin.Warming{Waiting: "limited", Until: now.Add(time.Hour)}) {
		t.Error("another reason is said once")
	}
}

// What is short stands before an error, which may be cut.
func TestNotesOfAnImageStandBeforeItsError(t *testing.T) {
	for _, row := range []struct {
		entry admin.WarmEntry
		want  string
	}{
		{admin.WarmEntry{}, ""},
		{admin.WarmEntry{Error: "no answer"}, "no answer"},
		{
			admin.WarmEntry{Error: "no answer", Skipped: 1, Absent: []string{"linux/riscv64", "linux/386"}},
			"nothing for linux/riscv64, linux/386; without 1 layer from elsewhere; no answer",
		},
	} {
		if got := entryText(row.entry); got != row.want {
			t.Errorf("%+v: %q, want %q", row.entry, got, row.want)
		}
	}
}
