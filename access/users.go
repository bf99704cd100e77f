package access

import (
	"fmt"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// userTable is an htpasswd file. It never changes: another file makes another
// table.
type userTable struct {
	hashes  map[string][]byte
	highest int                               // the cost of the costliest; 0: nobody has a password
	compare func(hash, password []byte) error // a test's, or bcrypt's
}

// maxCost is the highest cost that is taken. Each step doubles the time; 10 takes
// some 60 ms, 16 some seconds, and more would be an attack on ourselves.
const maxCost = 16

// parseUsers reads lines of "name:hash", as htpasswd -B writes them. There is a
// library for that file, but it also takes hashes that are broken within
// minutes, passes over lines that it cannot read, and does not tell the cost.
func parseUsers(content []byte) (*userTable, error) {
	t := &userTable{hashes: map[string][]byte{}, highest: bcrypt.MinCost, compare: bcrypt.CompareHashAndPassword}
	number := 0
	for line := range strings.Lines(string(content)) {
		number++
		line = strings.TrimRight(line, "\r\n")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, hash, _ := strings.Cut(line, ":")
		if err := checkName(name); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		cost, err := bcrypt.Cost([]byte(hash))
		switch {
		case err != nil || len(hash) != 60:
			return nil, fmt.Errorf("line %d: the password of %s is not kept as bcrypt, which alone is taken: want a line as htpasswd -B -C 10 makes it", number, name)
		case cost > maxCost:
			return nil, fmt.Errorf("line %d: the password of %s has cost %d, which takes too long to compare: want %d at most", number, name, cost, maxCost)
		case t.hashes[name] != nil:
			return nil, fmt.Errorf("line %d: %s is there already: want each user once", number, name)
		}
		t.hashes[name] = []byte(hash)
		t.highest = max(t.highest, cost)
	}
	return t, nil
}

// dummyHash is a hash of that cost, which no password is known for.
func dummyHash(cost int) []byte {
	return fmt.Appendf(nil, "$2a$%02d$%s", cost, strings.Repeat("Ejm2nSTu", 6)+"Ejm2O")
}

// matches reports whether the password is the user's. If it is not, that takes as
// long for every user as for one who does not exist.
func (t *userTable) matches(user, password string) bool {
	if t.highest == 0 {
		return false
	}
	hash, cost := t.hashes[user], t.highest
	// Beyond 72 bytes bcrypt sees nothing, and it begins anew after a NUL: x\x00x is x to it.
	if hash != nil && len(password) <= 72 && strings.IndexByte(password, 0) < 0 {
		if t.compare(hash, []byte(password)) == nil {
			return true
		}
		cost, _ = bcrypt.Cost(hash)
	} else {
		_ = t.compare(dummyHash(cost), []byte(password))
	}
	for ; cost < t.highest; cost++ { // each step costs as much as all before it
		_ = t.compare(dummyHash(cost), []byte(password))
	}
	return false
}
