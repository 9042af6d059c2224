package main

// getpid32 is getpid through the 32-bit entry of the kernel, whose numbers
// differ from those that a filter for 64 bits knows.
func getpid32() int
