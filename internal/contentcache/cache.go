// This file holds the cache: what is kept, for which addresses, and what has to go when it is full.

// Package contentcache keeps content whose address names it by its SHA-512, and has each fetched once.
//
// What is kept is found by the address at which a site has served it, never by the hash alone: a site
// serves only what its own servers have. But the bytes are kept once, with their compressed forms, however many
// sites and addresses have them. All of it together stays below one limit; what was used least recently goes first.
//
// Everything here is safe for concurrent use.
package contentcache

import (
	"container/list"
	"crypto/sha512"
	"net/http"
	"sync"
)

// Sum is the SHA-512 that an address names.
type Sum = [sha512.Size]byte

const (
	// maxFileShare is the part of the limit that one file may take, uncompressed.
	maxFileShare = 8
	// fetchingShare is the part of the limit that may be held, beside what is kept, by all that is being fetched.
	fetchingShare = 4
	// handedOnShare is the part of the limit that may be held, beside that, by answers that turned out not to be the file and are being
	// read by those who asked.
	handedOnShare = 8
	// entryCost is about what an entry takes beside its address and header.
	entryCost = 512
)

// Cache is what the sites of a process keep together. The zero Cache keeps nothing until a site is opened.
type Cache struct {
	mu       sync.Mutex // guards all below
	sites    map[*Site]bool
	limit    int64
	used     int64 // by the entries and their contents
	fetching int64 // held by turns, of what is being fetched
	handedOn int64 // held by turns, of what is being handed on
	recent   list.List
	entries  map[key]*list.Element // each holds an *entry
	contents map[Sum]*content
	flights  map[key]*flight
}

// Site is one that keeps files. It finds only what was kept for itself.
type Site struct {
	cache *Cache
	size  int64
}

// key is an address of a site, and the sum that it names.
type key struct {
	site *Site
	url  string
	sum  Sum
}

// entry is a file at an address.
type entry struct {
	key  key
	file *File
	cost int64 // without the content's
}

// File is content as one site serves it.
type File struct {
	*content
	Header http.Header // of the answer that it came with; not to be changed
}

// Open returns a new site. The limit of the cache, in bytes, is the largest size of the sites that are open.
func (c *Cache) Open(size int64) *Site {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sites == nil {
		c.sites = make(map[*Site]bool)
		c.entries = make(map[key]*list.Element)
		c.contents = make(map[Sum]*content)
		c.flights = make(map[key]*flight)
	}
	s := &Site{cache: c, size: size}
	c.sites[s] = true
	c.setLimit()
	return s
}

// Close lets go of what the site keeps. From then on it keeps nothing.
func (s *Site) Close() {
	c := s.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sites, s)
	for k, e := range c.entries {
		if k.site == s {
			c.remove(e)
		}
	}
	c.setLimit()
}

// Used returns how many bytes are kept.
func (c *Cache) Used() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// Get returns the file that is kept for an address, or nil.
func (s *Site) Get(url string, sum Sum) *File {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	return s.cache.get(key{s, url, sum})
}

// get returns the file of a key, or nil. c.mu is locked.
func (c *Cache) get(k key) *File {
	e := c.entries[k]
	if e == nil {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*entry).file
}

// put keeps data for a key, and returns it as a file. Where it is kept already, or cannot be, it is a file all the
// same. c.mu is locked.
func (c *Cache) put(k key, data []byte, h http.Header) *File {
	if f := c.get(k); f != nil {
		return f
	}
	body := c.contents[k.sum]
	if body == nil {
		body = newContent(c, data)
	}
	f := &File{body, h}
	if !c.sites[k.site] || int64(len(data)) > c.maxFile() {
		return f
	}
	if body.refs++; body.refs == 1 {
		c.contents[k.sum] = body
		c.used += body.size
	}
	e := &entry{key: k, file: f, cost: entryCost + int64(len(k.url)) + headerSize(h)}
	c.used += e.cost
	c.entries[k] = c.recent.PushFront(e)
	c.evict()
	return f
}

// setLimit takes the limit from the sites. c.mu is locked.
func (c *Cache) setLimit() {
	c.limit = 0
	for s := range c.sites {
		c.limit = max(c.limit, s.size)
	}
	c.evict()
}

// evict makes room. c.mu is locked.
func (c *Cache) evict() {
	for c.used > c.limit && c.recent.Len() > 0 {
		c.remove(c.recent.Back())
	}
}

// remove takes an entry out, and its content if no other entry has that. c.mu is locked.
func (c *Cache) remove(at *list.Element) {
	e := c.recent.Remove(at).(*entry)
	delete(c.entries, e.key)
	c.used -= e.cost
	body := e.file.content
	if body.refs--; body.refs == 0 {
		delete(c.contents, e.key.sum)
		c.used -= body.size
	}
}

func (c *Cache) maxFile() int64 { return c.limit / maxFileShare }

func headerSize(h http.Header) (n int64) {
	for name, values := range h {
		for _, v := range values {
			n += int64(len(name) + len(v))
		}
	}
	return n
}
