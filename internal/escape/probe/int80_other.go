//go:build !amd64

package main

// getpid32 has no counterpart on this architecture.
func getpid32() int { return -1 }
