package main

import (
	"encoding/hex"

	"github.com/warpstreamlabs/bento/public/bloblang"
	"golang.org/x/crypto/blake2b"
)

// crc16 is the checksum by which Redis Cluster places keys: CRC-16/XMODEM, polynomial 0x1021.
func crc16(data []byte) int64 {
	crc := uint16(0)
	for _, b := range data {
		crc ^= uint16(b) << 8
		for range 8 {
			carry := crc&0x8000 != 0
			if crc <<= 1; carry {
				crc ^= 0x1021
			}
		}
	}
	return int64(crc)
}

// fingerprint is BLAKE2b with 16 bytes, in hexadecimal: what the API service takes of a body.
func fingerprint(data []byte) (string, error) {
	sum, err := blake2b.New(16, nil)
	if err != nil {
		return "", err
	}
	sum.Write(data)
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func init() {
	for name, method := range map[string]func([]byte) (any, error){
		"crc16":   func(data []byte) (any, error) { return crc16(data), nil },
		"blake2b": func(data []byte) (any, error) { return fingerprint(data) },
	} {
		if err := bloblang.RegisterMethodV2(name, bloblang.NewPluginSpec().Category("Penstock"),
			func(*bloblang.ParsedParams) (bloblang.Method, error) { return bloblang.BytesMethod(method), nil }); err != nil {
			panic(err)
		}
	}
}
