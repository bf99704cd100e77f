package cache

// maxWeighed bounds what a weighed holds, in bytes.
const maxWeighed = 8 << 20

// weighed holds values in bounded memory: to make room, all are forgotten, and what is
// out of proportion is not taken. Its owner guards it.
type weighed[V any] struct {
	items  map[string]weighedItem[V]
	weight int
}

type weighedItem[V any] struct {
	value  V
	weight int
}

// put holds a value, which takes so many bytes, instead of what its key had.
func (w *weighed[V]) put(key string, value V, weight int) {
	w.drop(key)
	if weight > maxWeighed/4 {
		return
	}
	if w.items == nil || w.weight+weight > maxWeighed {
		w.items, w.weight = map[string]weighedItem[V]{}, 0
	}
	w.items[key] = weighedItem[V]{value, weight}
	w.weight += weight
}

func (w *weighed[V]) get(key string) (V, bool) {
	item, ok := w.items[key]
	return item.value, ok
}

func (w *weighed[V]) drop(key string) {
	w.weight -= w.items[key].weight
	delete(w.items, key)
}
