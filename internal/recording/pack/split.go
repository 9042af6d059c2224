package pack

// Bounds of a piece, in bytes. Small pieces make what moves in a conversation
// cheap; numbers of pieces are kept as runs, so that they cost little.
const (
	minPiece = 256
	maxPiece = 8 << 10
	// edge has a one for each bit that must be zero where a piece ends: ten of
	// them make 1 KiB the mean after the shortest one.
	edge = uint64(0x3ff) << 54
)

// gear has a random number for each byte (Xia et al., "Ddelta", 2014). It is
// part of the format: other numbers find other pieces.
var gear = makeGear()

func makeGear() (table [256]uint64) {
	state := uint64(0x6d61_7966_6c79)
	for i := range table { // splitmix64
		state += 0x9e3779b97f4a7c15
		z := state
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		table[i] = z ^ z>>31
	}
	return table
}

// Split cuts data where its content says, so that equal stretches of two
// contents have equal pieces wherever they lie. The pieces share data's memory.
func Split(data []byte) [][]byte {
	var pieces [][]byte
	for len(data) > 0 {
		n := cut(data)
		pieces = append(pieces, data[:n:n])
		data = data[n:]
	}
	return pieces
}

// cut is the length of the first piece.
func cut(data []byte) int {
	if len(data) <= minPiece {
		return len(data)
	}
	data = data[:min(len(data), maxPiece)]
	h := uint64(0)
	for i := minPiece - 64; i < len(data); i++ { // a hash forgets after 64 bytes
		h = h<<1 + gear[data[i]]
		if h&edge == 0 && i >= minPiece {
			return i + 1
		}
	}
	return len(data)
}
