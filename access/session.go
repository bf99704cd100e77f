package access

import (
	"bytes"
	"context"
	"slices"
	"sync/atomic"
	"time"

	"entrepot/oci"
)

// Session is somebody who asks, and as a Source what they may see. It decides
// before anything is looked up, so that an answer, and how long it takes, says
// nothing of what is there. It is shared by all requests with one credential.
type Session struct {
	gate  *Gate
	who   Identity
	until time.Time                 // zero: no end
	hash  []byte                    // of a password: what it was compared with
	users atomic.Pointer[userTable] // of a password: those among whom it still was the user's
	rules *rules                    // of a CI system's token: those that said whose it is

	token   bool // it holds for what follows alone
	catalog bool
	repos   []oci.Repository

	last atomic.Pointer[decision] // most ask again and again for one repository
}

// decision is what the rules said of a repository.
type decision struct {
	rules *rules
	repo  oci.Repository
	may   action
}

// Name is who asks; empty for nobody in particular.
func (s *Session) Name() string { return s.who.Name }

// isCurrent reports whether what the session was made from still holds. Another
// file of users is no reason to compare a password again whose hash is the same.
func (s *Session) isCurrent(now time.Time) bool {
	if !s.until.IsZero() && !now.Before(s.until) {
		return false
	}
	if s.rules != nil && s.rules != s.gate.rules.Load() {
		return false
	}
	table := s.gate.users.Load()
	if s.hash == nil || s.users.Load() == table {
		return true
	}
	if !bytes.Equal(table.hashes[s.who.Name], s.hash) {
		return false
	}
	s.users.Store(table)
	return true
}

// may reports why a repository may not be asked; kind says how a thing that
// does not exist would be told. Who has not said who they are is asked to.
func (s *Session) may(repo oci.Repository, what action, kind oci.Kind) error {
	if s.token && !slices.Contains(s.repos, repo) {
		return errScope
	}
	rules := s.gate.rules.Load()
	if rules == nil {
		return nil // whoever has a session may
	}
	d := s.last.Load()
	if d == nil || d.rules != rules || d.repo != repo {
		d = &decision{rules, repo, rules.allowed(s.who, repo)}
		s.last.Store(d)
	}
	switch {
	case d.may&what != 0:
		return nil
	case s.who.Name == "":
		return errLogin
	}
	return unknown(kind)
}

// ask says who asks, unless that is nobody in particular.
func (s *Session) ask(ask oci.Ask) oci.Ask {
	if s.who.Name != "" {
		ask.Client = s.who.Name
	}
	return ask
}

// Resolve implements oci.Source.
func (s *Session) Resolve(ctx context.Context, repo oci.Repository, reference string, ask oci.Ask) (oci.Resolved, oci.Outcome, error) {
	if err := s.may(repo, readContent, oci.ManifestKind); err != nil {
		return oci.Resolved{}, oci.Outcome{}, err
	}
	return s.gate.cfg.Source.Resolve(ctx, repo, reference, s.ask(ask))
}

// Manifest implements oci.Source.
func (s *Session) Manifest(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Manifest, oci.Outcome, error) {
	if err := s.may(repo, readContent, oci.ManifestKind); err != nil {
		return oci.Manifest{}, oci.Outcome{}, err
	}
	return s.gate.cfg.Source.Manifest(ctx, repo, d, s.ask(ask))
}

// Blob implements oci.Source.
func (s *Session) Blob(ctx context.Context, repo oci.Repository, d oci.Digest, ask oci.Ask) (oci.Blob, error) {
	if err := s.may(repo, readContent, oci.BlobKind); err != nil {
		return nil, err
	}
	return s.gate.cfg.Source.Blob(ctx, repo, d, s.ask(ask))
}

// Tags implements oci.Source.
func (s *Session) Tags(ctx context.Context, repo oci.Repository, page oci.Page, ask oci.Ask) (oci.TagList, oci.Outcome, error) {
	if err := s.may(repo, readMetadata, oci.TagsKind); err != nil {
		return oci.TagList{}, oci.Outcome{}, err
	}
	return s.gate.cfg.Source.Tags(ctx, repo, page, s.ask(ask))
}

// Referrers implements oci.Source.
func (s *Session) Referrers(ctx context.Context, repo oci.Repository, d oci.Digest, artifactType string, ask oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	if err := s.may(repo, readMetadata, oci.ReferrersKind); err != nil {
		return oci.ReferrerList{}, oci.Outcome{}, err
	}
	return s.gate.cfg.Source.Referrers(ctx, repo, d, artifactType, s.ask(ask))
}

// Repositories implements oci.Catalog: those that may be seen. All are asked for
// at once: each question walks through all that there are, and how many pages it
// takes until one is full depends on what others may see.
func (s *Session) Repositories(ctx context.Context, page oci.Page) (names []string, more bool, err error) {
	if s.token && !s.catalog {
		return nil, false, errScope
	}
	rules := s.gate.rules.Load()
	if rules == nil {
		return s.gate.cfg.Catalog.Repositories(ctx, page)
	}
	all, _, err := s.gate.cfg.Catalog.Repositories(ctx, oci.Page{N: -1, Last: page.Last})
	if err != nil {
		return nil, false, err
	}
	for _, name := range all {
		repo, ok := repositoryOf(name)
		if !ok || rules.allowed(s.who, repo)&readMetadata == 0 {
			continue
		}
		if page.N >= 0 && len(names) == page.N {
			return names, true, nil
		}
		names = append(names, name)
	}
	return names, false, nil
}
