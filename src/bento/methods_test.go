package main

import "testing"

func TestChecksumsAreTheWellKnownOnes(t *testing.T) {
	for text, wanted := range map[string]int64{"": 0, "123456789": 0x31C3, "acme": 0xac28} {
		if got := crc16([]byte(text)); got != wanted {
			t.Errorf("crc16(%q) = %#x, wanted %#x", text, got, wanted)
		}
	}
	if got, err := fingerprint([]byte("abc")); err != nil || got != "cf4ab791c62b8d2b2109c90275287816" {
		t.Errorf("fingerprint: %s %v", got, err)
	}
}
