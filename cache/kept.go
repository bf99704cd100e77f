package cache

import (
	"strings"
	"sync"

	"entrepot/oci"
)

// maxKeptLists bounds what keptLists hold: bytes, as far as referrers tell.
const maxKeptLists = 8 << 20

// keptLists are the last answers of referrers APIs, for the time in which these
// cannot be asked: who verifies signatures needs them in an outage, too. They are
// in memory alone, as they age, and nothing is lost with them but an answer that
// only upstream could confirm.
type keptLists struct {
	mu    sync.Mutex // guards what follows
	lists map[string]oci.ReferrerList
	bytes int
}

// keptSize is what a list weighs.
func keptSize(key string, l oci.ReferrerList) int {
	n := len(key) + 200
	for i := range l.Manifests {
		n += len(l.Manifests[i].Raw) + 200
	}
	return n
}

// put keeps an answer. To make room, all are forgotten.
func (k *keptLists) put(key string, l oci.ReferrerList) {
	n := keptSize(key, l)
	k.mu.Lock()
	defer k.mu.Unlock()
	if old, ok := k.lists[key]; ok {
		k.bytes -= keptSize(key, old)
		delete(k.lists, key)
	}
	if n > maxKeptLists/4 {
		return
	}
	if k.lists == nil || k.bytes+n > maxKeptLists {
		k.lists, k.bytes = map[string]oci.ReferrerList{}, 0
	}
	k.lists[key] = l
	k.bytes += n
}

// forgetOf drops what is kept of a repository.
func (k *keptLists) forgetOf(repo oci.Repository) {
	prefix := repo.String() + " "
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, l := range k.lists {
		if strings.HasPrefix(key, prefix) {
			k.bytes -= keptSize(key, l)
			delete(k.lists, key)
		}
	}
}

func (k *keptLists) get(key string) (oci.ReferrerList, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	l, ok := k.lists[key]
	return l, ok
}
