package access

import (
	"cmp"
	"encoding/json"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"entrepot/oci"
)

// TokenPath is where the token service is.
const TokenPath = "/token"

const (
	maxTokenBody    = 64 << 10
	tokenBodyWait   = 5 * time.Second
	formContentType = "application/x-www-form-urlencoded"
)

// ServeToken gives out tokens: by GET with basic authentication, a client's
// certificate or nothing (distribution spec, "Token Authentication"), and by
// POST as OAuth2 has it. It returns who asked, empty for nobody in particular, and
// what went wrong.
func (g *Gate) ServeToken(w http.ResponseWriter, r *http.Request) (user string, err error) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	if r.ContentLength != 0 { // net/http waits for a body, also one that nobody reads
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(tokenBodyWait)) // a test's writer has none
	}
	answer, user, err := g.token(w, r)
	if g.cfg.Turn != nil {
		if late := g.cfg.Turn(r.Context(), cmp.Or(user, hostOf(r.RemoteAddr))); late != nil {
			err = late
		}
	}
	var body []byte
	if err == nil {
		body, err = json.Marshal(answer)
	}
	if err != nil {
		switch oci.CodeOf(err) {
		case oci.Unauthorized:
			h.Set("WWW-Authenticate", `Basic realm="`+service+`"`)
		case oci.Unsupported:
			h.Set("Allow", "GET, POST")
		}
		oci.WriteError(w, err)
		return user, err
	}
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body)
	return user, nil
}

// tokenAnswer has the token twice: clients differ in where they look.
type tokenAnswer struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int    `json:"expires_in"`
	IssuedAt    string `json:"issued_at"`
}

func (g *Gate) token(w http.ResponseWriter, r *http.Request) (answer *tokenAnswer, user string, err error) {
	var params url.Values
	var s *Session
	switch r.Method {
	case http.MethodGet:
		if params, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return nil, user, oci.Errorf(oci.Denied, "the query is malformed")
		}
		s, err = g.Admit(r, oci.TagsKind) // any that nobody in particular may ask
	case http.MethodPost:
		if params, err = tokenForm(w, r); err != nil {
			return nil, user, err
		}
		s, err = g.grant(r, params)
	default:
		return nil, user, oci.Errorf(oci.Unsupported, "tokens are given by GET and POST")
	}
	if err != nil {
		return nil, "", err
	}
	if user = s.Name(); s.token {
		return nil, user, oci.Errorf(oci.Unauthorized, "a token is no reason to give another one: want a name and a password")
	}
	if asked := params.Get("service"); asked != "" && asked != service {
		return nil, user, oci.Errorf(oci.Denied, "tokens for the service %q are not given here", clip(asked, 40))
	}
	asked, err := parseScopes(params["scope"], g.cfg.Names)
	if err != nil {
		return nil, user, err
	}
	now := time.Now()
	text, err := g.tokens.sign(s.who, asked, now)
	if err != nil {
		return nil, user, err
	}
	return &tokenAnswer{text, text, int(tokenLife.Seconds()), now.UTC().Format(time.RFC3339)}, user, nil
}

func tokenForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != formContentType {
		return nil, oci.Errorf(oci.Denied, "want a body of the type "+formContentType)
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxTokenBody)
	if err := r.ParseForm(); err != nil {
		if _, large := errors.AsType[*http.MaxBytesError](err); large {
			return nil, oci.Errorf(oci.Denied, "the body is larger than %d bytes", maxTokenBody)
		}
		return nil, oci.Errorf(oci.Denied, "the body is malformed")
	}
	return r.PostForm, nil
}

// grant is who a form says it is from.
func (g *Gate) grant(r *http.Request, form url.Values) (*Session, error) {
	if kind := form.Get("grant_type"); kind != "password" {
		return nil, oci.Errorf(oci.Denied, "there is no grant %q here: want password", clip(kind, 40))
	}
	user, password := form.Get("username"), form.Get("password")
	return g.login(r, g.keyOf("form\n"+user+"\n"+password), user, password)
}
