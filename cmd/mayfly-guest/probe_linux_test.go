package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeVariable makes the test binary, executed inside an environment, do one
// thing instead of the tests.
const probeVariable = "MAYFLY_TEST_PROBE"

// runProbe makes a system call, "number,arg,…" with numbers in any base of
// Go's, and prints its error; or eats memory, or tells what it wrote.
func runProbe(probe string) int {
	if probe == "tell" {
		return tell()
	}
	if size, ok := strings.CutPrefix(probe, "eat:"); ok {
		n, _ := strconv.Atoi(size)
		b := make([]byte, n)
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		time.Sleep(time.Second)
		return int(b[0]) - 1
	}
	var args [7]uintptr
	for i, s := range strings.Split(probe, ",") {
		n, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			fmt.Println(err)
			return 2
		}
		args[i] = uintptr(n)
	}
	_, _, errno := syscall.RawSyscall6(args[0], args[1], args[2], args[3], args[4], args[5], args[6])
	if errno == 0 {
		fmt.Println("ok")
	} else {
		fmt.Println(unix.ErrnoName(errno))
	}
	return 0
}
