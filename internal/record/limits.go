// This file holds how large records in the storage may be.

package record

import (
	"time"
)

// What is read of a storage is bounded in number and in bytes: it may hold what somebody else has written, or what was
// left behind. A node that is passed over may have sessions, so nothing is called drained then.
const (
	maxReport   = 2 << 20   // bytes; an upstream takes 300 of them, so there is room for some 7,000
	MaxAccounts = 8192      // upstreams in a report
	maxDrain    = 512 << 10 // bytes

	// maxShared is how long the name of an upstream between nodes may be, in bytes. An address has 320 at most, and its name may be
	// longer: what is no text takes more room in lower case.
	maxShared = 4 * 320

	MaxReason = 1000    // bytes of what an operator gives as a reason. Those of versions that took longer ones are cut.
	maxName   = 256     // bytes of a name or an id in a record
	maxCount  = 1 << 40 // of anything, so that no sum of counts overflows
)

// MaxLifetime bounds all times that sessions and drains last, so that no sum of two of them overflows.
const MaxLifetime = 8760 * time.Hour
