// Package volumetest holds every implementation of volume.Pool to its
// contract, with real overlays upon it.
package volumetest
