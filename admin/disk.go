package admin

import (
	"errors"
	"strconv"
	"time"

	"entrepot/oci"
	"entrepot/store"
)

// What is asked of the data directory alone.

// target reads what a pin is for.
func (x *exchange) target() (Target, oci.Repository, error) {
	var t Target
	if err := x.body(&t); err != nil {
		return t, oci.Repository{}, err
	}
	repo, err := t.parse()
	if err == nil && t.All {
		err = badRequest("a pin is for a tag or a digest")
	}
	return t, repo, err
}

func (x *exchange) repositories() error {
	n := 0
	err := x.api.cfg.Disk.Holdings(x.r.Context(), func(h store.Holding) error {
		n++
		return x.item(newRepository(h))
	})
	if err != nil {
		return err
	}
	return x.result(Count{n})
}

func (x *exchange) images() error {
	repo, err := oci.ParseRepository(x.r.URL.Query().Get("repository"))
	if err != nil {
		return badRequest("repository: %s", oci.Reason(err))
	}
	images, err := x.api.cfg.Disk.Images(x.r.Context(), repo)
	if err != nil {
		return err
	}
	if len(images) == 0 && !x.api.hasUpstream(repo) {
		return x.api.noUpstream(repo.Host)
	}
	for _, im := range images {
		if err := x.item(newImage(im)); err != nil {
			return err
		}
	}
	return x.result(Count{len(images)})
}

func (x *exchange) pins() error {
	pins, err := x.api.cfg.Disk.Pins(x.r.Context())
	if err != nil {
		return err
	}
	for _, p := range pins {
		if err := x.item(newPin(p)); err != nil {
			return err
		}
	}
	return x.result(Count{len(pins)})
}

func (x *exchange) usage() error {
	var u store.Usage
	err := x.telling(func(tell func(any)) (err error) {
		u, err = x.api.cfg.Disk.Usage(x.r.Context(), func(files int) { tell(Files{files}) })
		return err
	})
	if err != nil {
		return err
	}
	u.Budget = x.api.cfg.Budget
	return x.result(newUsage(u))
}

// MaxEvictions is how many of the next evictions are told.
const MaxEvictions = 1000

func (x *exchange) evictions() error {
	n, err := strconv.Atoi(x.r.URL.Query().Get("n"))
	if err != nil || n < 1 || n > MaxEvictions {
		return badRequest("n: want a number from 1 to %d", MaxEvictions)
	}
	victims, err := x.api.cfg.Disk.DryRun(x.r.Context(), n)
	if err != nil {
		return err
	}
	for _, v := range victims {
		if err := x.item(Victim{v.Digest, v.Fill, v.Bytes, v.LastUse, v.Uses, v.Upstream, v.Repositories, v.Why}); err != nil {
			return err
		}
	}
	return x.result(Count{len(victims)})
}

func (x *exchange) pin() error {
	t, repo, err := x.target()
	if err != nil {
		return err
	}
	if !x.api.hasUpstream(repo) && errors.Is(x.api.cfg.Disk.CanRemoveRepository(x.r.Context(), repo), store.ErrNotHeld) {
		return x.api.noUpstream(repo.Host)
	}
	if err := x.api.cfg.Disk.Pin(x.r.Context(), repo, t.Reference); err != nil {
		return err
	}
	pins, err := x.api.cfg.Disk.Pins(x.r.Context())
	if err != nil {
		return err
	}
	for _, p := range pins {
		if p.Repository == repo && p.Reference == t.Reference {
			return x.result(newPin(p))
		}
	}
	return x.result(t) // unpinned by somebody else meanwhile
}

func (x *exchange) unpin() error {
	t, repo, err := x.target()
	if err != nil {
		return err
	}
	if err := x.api.cfg.Disk.Unpin(x.r.Context(), repo, t.Reference); err != nil {
		return err
	}
	return x.result(t)
}

func (x *exchange) remove() error {
	var ask Removal
	if err := x.body(&ask); err != nil {
		return err
	}
	repo, err := ask.parse()
	if err != nil {
		return err
	}
	err = x.forget(repo, ask)
	switch {
	case errors.Is(err, store.ErrNotHeld) && !x.api.hasUpstream(repo):
		return x.api.noUpstream(repo.Host)
	case err != nil:
		return err
	}
	if live := x.api.cfg.Live; live != nil && !ask.DryRun {
		live.Cache.ForgetReferrers(repo)
	}
	return x.result(ask.Target)
}

func (x *exchange) forget(repo oci.Repository, ask Removal) error {
	ctx, disk := x.r.Context(), x.api.cfg.Disk
	dg, err := oci.ParseDigest(ask.Reference)
	switch isDigest := err == nil; {
	case ask.All && ask.DryRun:
		return disk.CanRemoveRepository(ctx, repo)
	case ask.All:
		return disk.RemoveRepository(ctx, repo)
	case isDigest && ask.DryRun:
		return disk.CanRemoveManifest(ctx, repo, dg)
	case isDigest:
		return disk.RemoveManifest(ctx, repo, dg)
	case ask.DryRun:
		return disk.CanRemoveTag(ctx, repo, ask.Reference)
	}
	return disk.RemoveTag(ctx, repo, ask.Reference)
}

func (x *exchange) prune() error {
	var ask Prune
	if err := x.body(&ask); err != nil {
		return err
	}
	const most = 100 * 365 * 24 * 3600
	if ask.UnusedSeconds < 0 || ask.UnusedSeconds > most {
		return badRequest("unusedSeconds: want a number from 0 to %d", most)
	}
	unused := time.Duration(ask.UnusedSeconds) * time.Second
	if ask.DryRun {
		return x.pruneDryRun(unused)
	}
	var p store.Pruned
	err := x.telling(func(tell func(any)) (err error) {
		p, err = x.api.cfg.Disk.Prune(x.r.Context(), store.Pruning{Unused: unused, Progress: func(done float64) { tell(Share{done}) }})
		return err
	})
	if live := x.api.cfg.Live; live != nil { // also after one that was ended: what was removed stays so
		live.List.Recount()
	}
	if err != nil {
		return err
	}
	return x.result(newPruned(p))
}

// pruneDryRun has an item for each thing that would be removed.
func (x *exchange) pruneDryRun(unused time.Duration) error {
	p, err := x.api.cfg.Disk.Prune(x.r.Context(), store.Pruning{Unused: unused, Would: func(v store.Prunable) {
		_ = x.item(Prunable(v)) // a client that leaves ends the context
	}})
	if err != nil {
		return err
	}
	return x.result(newPruned(p))
}

func (x *exchange) verify() error {
	if err := x.body(&struct{}{}); err != nil {
		return err
	}
	var v store.Verified
	err := x.telling(func(tell func(any)) (err error) {
		v, err = x.api.cfg.Disk.Verify(x.r.Context(), func(v store.Verified) {
			v.Dropped = nil // it grows behind our back
			tell(newVerified(v))
		})
		return err
	})
	if err != nil {
		return err
	}
	return x.result(newVerified(v))
}
