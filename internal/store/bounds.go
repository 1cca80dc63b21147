// This file holds what is bounded of what is read of a storage, how long its calls may take, and what may be wrong with a record.

package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// NodesFolder is where the storage keeps the reports of the nodes.
const NodesFolder = Folder + "nodes/"

// What is read of a storage is bounded in number and in bytes: it may hold what somebody else has written, or what was left behind.
const (
	MaxRecords = 4096          // in a folder
	MaxFolder  = 64 << 20      // bytes of them all, while they are read
	MaxMemory  = 2 * MaxFolder // bytes of memory of the records of a folder
	maxReason  = 256           // bytes of what is told of a record that is broken
)

const (
	// CallTimeout is how long one call of a storage may take.
	CallTimeout = 5 * time.Second

	// MaxBackoff bounds for how long a storage that does not answer is not asked again, and what a node needs of it.
	MaxBackoff = 5 * time.Minute

	// MaxStrangeBackoff bounds for how long a thing is not asked for that a node does not need, and all once manyLeft calls are left behind.
	MaxStrangeBackoff = time.Hour

	// checkTimeout is how long a storage may take for all that is tried.
	checkTimeout = 8 * time.Second
)

// ErrUnanswered is what is said of a storage that may do later what it was asked for.
var ErrUnanswered = fmt.Errorf("the storage has not answered within %v", CallTimeout)

// ErrBroken is a record that cannot be read, or says what no Caddy does.
var ErrBroken = errors.New("the record is broken")

// RandomName is unlikely to be that of anything else.
func RandomName() string {
	var raw [8]byte
	rand.Read(raw[:])
	return hex.EncodeToString(raw[:])
}
