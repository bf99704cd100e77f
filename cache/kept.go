package cache

import (
	"strings"
	"sync"

	"entrepot/oci"
)

// keptLists are the last answers of referrers APIs, for the time in which these
// cannot be asked: who verifies signatures needs them in an outage, too. They are
// in memory alone, as they age, and nothing is lost with them but an answer that
// only upstream could confirm.
type keptLists struct {
	mu    sync.Mutex // guards lists
	lists weighed[oci.ReferrerList]
}

// put keeps an answer, which weighs as much as referrers tell.
func (k *keptLists) put(key string, l oci.ReferrerList) {
	n := len(key) + 200
	for i := range l.Manifests {
		n += len(l.Manifests[i].Raw) + 200
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lists.put(key, l, n)
}

// forgetOf drops what is kept of a repository.
func (k *keptLists) forgetOf(repo oci.Repository) {
	prefix := repo.String() + " "
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.lists.items {
		if strings.HasPrefix(key, prefix) {
			k.lists.drop(key)
		}
	}
}

func (k *keptLists) get(key string) (oci.ReferrerList, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.lists.get(key)
}
