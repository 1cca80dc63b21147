// This file holds what is told of a storage that was tried.

package api

// StorageCheck is what a storage can do.
type StorageCheck struct {
	Storage string      `json:"storage"` // its module, or its type
	OK      bool        `json:"ok"`
	Steps   []CheckStep `json:"steps"`
}

// CheckStep is one thing that was tried.
type CheckStep struct {
	Name    string  `json:"name"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"` // that it took
	Error   string  `json:"error,omitempty"`
	Means   string  `json:"means,omitempty"` // what follows from the error
	Note    string  `json:"note,omitempty"`
}
