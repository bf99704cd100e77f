package operate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"entrepot/admin"
	"entrepot/oci"
	"entrepot/words"
)

// What a person means by an argument.

// selection is what a person means by an argument: repositories, and tags of them.
type selection struct {
	repository string // a pattern over upstream/repository
	tag        string // a pattern; empty where none was given
	digest     oci.Digest
}

// target is the one thing that sel without patterns means: a digest before a tag.
func (sel selection) target() admin.Target {
	t := admin.Target{Repository: sel.repository, Reference: sel.tag}
	switch {
	case !sel.digest.IsZero():
		t.Reference = sel.digest.String()
	case sel.tag == "":
		t.Reference = "latest"
	}
	return t
}

// isPattern reports whether a name stands for several.
func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// selectionOf reads a reference, in which repository and tag may be patterns.
func selectionOf(names *oci.Names, s string) (sel selection, err error) {
	name, digest, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		if sel.digest, err = oci.ParseDigest(digest); err != nil {
			return selection{}, err
		}
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, sel.tag = name[:i], name[i+1:]
		if !isPattern(sel.tag) && !oci.ValidTag(sel.tag) {
			return selection{}, fmt.Errorf("%s is not a tag", words.Quote(sel.tag))
		}
	}
	sel.repository, err = repositoryPattern(names, name)
	return sel, err
}

// repositoryPattern gives a name its full form. Upstreams that are not configured
// any more may still have left something.
func repositoryPattern(names *oci.Names, name string) (string, error) {
	if rest, guessed := names.CutOwn(name); guessed == "" || strings.Contains(guessed, ":") {
		name = rest // without a port it may be any registry, and nothing is done to another image than is meant
	}
	first, rest, _ := strings.Cut(name, "/")
	isHost := oci.IsRegistry(first)
	if !isPattern(name) {
		repo, _, err := names.Repository(name, "", "")
		if _, gone := errors.AsType[oci.UnknownUpstream](err); gone {
			repo, err = oci.NewRepository(oci.FoldHost(first), rest)
			if err == nil && repo.Host == oci.DockerHub && !strings.Contains(rest, "/") {
				repo, err = oci.NewRepository(repo.Host, "library/"+rest)
			}
		}
		return repo.String(), err
	}
	switch {
	case strings.HasPrefix(name, "*"):
		return name, nil
	case isHost && !isPattern(first):
		return oci.FoldHost(first) + "/" + rest, nil
	case isHost:
		return name, nil
	case names.Default == oci.DockerHub && !strings.Contains(name, "/"):
		return names.Default + "/library/" + name, nil
	}
	// What stands before the first pattern may be the target of a rule.
	if i := strings.LastIndexByte(name[:strings.IndexAny(name, "*?[")], '/'); i > 0 {
		const below = "x/x" // two parts, as docker.io has in any case
		if repo, _, err := names.Repository(name[:i+1]+below, "", ""); err == nil {
			return strings.TrimSuffix(repo.String(), below) + name[i+1:], nil
		}
	}
	return names.Default + "/" + name, nil
}

// selectArgument reads one of the command's arguments.
func (o *operation) selectArgument(arg string) (selection, error) {
	sel, err := selectionOf(o.settings.Names, arg)
	if err != nil {
		return sel, ExitError{Misuse, fmt.Sprintf("%s %s: %s", o.name, words.Quote(arg), oci.Reason(err))}
	}
	return sel, nil
}

// repositories are those that are held and match.
func (o *operation) repositories(ctx context.Context, sel selection) ([]string, error) {
	if !isPattern(sel.repository) {
		return []string{sel.repository}, nil
	}
	var names []string
	err := each(ctx, o, "repositories", nil, func(r admin.Repository, _ json.RawMessage) error {
		if oci.Matches(sel.repository, r.Repository) {
			names = append(names, r.Repository)
		}
		return nil
	})
	return names, err
}

// images visits the images that match.
func (o *operation) images(ctx context.Context, sel selection, visit func(admin.Image, json.RawMessage) error) error {
	repositories, err := o.repositories(ctx, sel)
	if err != nil {
		return err
	}
	for _, name := range repositories {
		err := each(ctx, o, "images", url.Values{"repository": {name}}, func(im admin.Image, raw json.RawMessage) error {
			if sel.tag != "" && !oci.Matches(sel.tag, im.Tag) || !sel.digest.IsZero() && im.Digest != sel.digest {
				return nil
			}
			return visit(im, raw)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
