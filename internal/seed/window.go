package seed

import "time"

// Window is the time between our container's creation and its first start. An
// engine copies what an image has into an empty volume when it creates a container,
// and Compose creates all containers of a stack before it starts any: so what was
// born within, in a volume that nothing else was born in, is such a copy. A restart
// does not move it. The zero Window contains nothing.
type Window struct {
	Created time.Time `json:"created,omitzero"`
	Started time.Time `json:"started,omitzero"`
}

// known says whether the window is one: some file systems do not tell when a file was
// born, and a container that has another's network has its hostname too.
func (w Window) known() bool {
	return !w.Created.IsZero() && !w.Started.IsZero() && !w.Started.Before(w.Created)
}
