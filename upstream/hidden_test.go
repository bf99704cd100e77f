package upstream

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

// A registry that hides from strangers what is private says 404 of it to nobody. Where
// we are nobody since our login is refused, that is no word about the thing.
func TestA404ToNobodyIsNoWordAboutTheThing(t *testing.T) {
	image := ocitest.RandomImage(1, 100)
	layer := image.Blobs[0]
	blob := func(ctx context.Context, c *Client) oci.Blob {
		b, err := c.Blob(ctx, alpine, layer.Digest, oci.Ask{})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for name, ask := range map[string]func(context.Context, *Client) error{
		"a tag": func(ctx context.Context, c *Client) error {
			_, _, err := c.Resolve(ctx, alpine, "latest", oci.Ask{})
			return err
		},
		"a manifest": func(ctx context.Context, c *Client) error {
			_, _, err := c.Manifest(ctx, alpine, image.Digest, oci.Ask{})
			return err
		},
		"a blob's size": func(ctx context.Context, c *Client) error {
			_, _, err := blob(ctx, c).Stat(ctx)
			return err
		},
		"a blob": func(ctx context.Context, c *Client) error {
			r, err := blob(ctx, c).Open(ctx, 0, -1)
			if err == nil {
				_, err = io.Copy(io.Discard, r)
				r.Close()
			}
			return err
		},
		"tags": func(ctx context.Context, c *Client) error {
			_, _, err := c.Tags(ctx, alpine, oci.Page{N: -1}, oci.Ask{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			simulate(t, ocitest.Config{Habits: ocitest.Habits{HidePrivate: true}}, func(w *world) {
				w.hub.AddUser("me", "secret")
				w.hub.Push(alpine.Path, "latest", image)
				w.hub.Private(alpine.Path, "me")
				password := "wrong"
				c := w.connect(func(cfg *Config) {
					cfg.Credentials = PasswordFrom("me", func() (string, error) { return password, nil })
				})
				for _, when := range []string{"at first", "once the token is here", "after its end"} {
					err := ask(w.t.Context(), c)
					wantCode(w.t, err, oci.Denied)
					if !strings.HasSuffix(oci.Reason(err), withoutLogin) || errors.Is(err, oci.ErrHidden) {
						w.t.Errorf("%s: %v", when, err)
					}
					if when != "at first" {
						time.Sleep(10 * time.Minute)
					}
				}
				password = "secret"
				if err := ask(w.t.Context(), c); err != nil {
					w.t.Errorf("once the login is put right: %v", err)
				}
				w.hub.Delete(alpine.Path)
				if err := ask(w.t.Context(), c); !oci.IsUnknown(err) {
					w.t.Errorf("once it is gone: %v", err)
				}
			})
		})
	}
}

// Who is refused his password, and has been told nothing before, is told so at once.
func TestTheFirstRefusalSaysWhy(t *testing.T) {
	for _, auth := range []ocitest.Auth{ocitest.TokenAuth, ocitest.BasicAuth} {
		simulate(t, ocitest.Config{Habits: ocitest.Habits{Auth: auth}}, func(w *world) {
			w.hub.AddUser("me", "secret")
			w.hub.Private(alpine.Path, "me")
			c := w.connect(func(cfg *Config) { cfg.Credentials = Password("me", "wrong") })
			for i := range 3 {
				if err := resolve(w.t, c); oci.CodeOf(err) != oci.Denied || !strings.HasSuffix(oci.Reason(err), withoutLogin) {
					w.t.Errorf("auth %q, question %d: %v", auth, i, err)
				}
			}
		})
	}
}
