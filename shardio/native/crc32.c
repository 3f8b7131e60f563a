/* CRC-32 of zlib, gzip and PNG: polynomial 0xEDB88320, lowest bit first.
 *
 * Where the processor multiplies without carries, 64 bytes at a time are folded onto the next 64:
 * V. Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction",
 * Intel 2009. ARMv8 has instructions for this very polynomial. Elsewhere, and for what is left
 * over, a step of eight bytes takes eight tables: M. E. Kounavis and F. L. Berry, "A Systematic
 * Approach to Building High Performance Software-based CRC Generators", Intel 2005.
 */
#include "core.h"

#if defined(__ARM_FEATURE_CRC32) && !defined(__ARM_BIG_ENDIAN)
#include <arm_acle.h>
#include <string.h>

uint32_t shardio_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t eight;
        memcpy(&eight, data, 8);
        crc = __crc32d(crc, eight);
    }
    for (; size > 0; size--)
        crc = __crc32b(crc, *data++);
    return ~crc;
}

#else

#define POLYNOMIAL 0xEDB88320u

/* What a byte adds to the checksum if `ahead` zero bytes follow it: tables[ahead][byte]. Written
 * once, when the library is loaded. */
static uint32_t tables[8][256];

__attribute__((constructor)) static void fill_tables(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (int ahead = 1; ahead < 8; ahead++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t crc = tables[ahead - 1][byte];
            tables[ahead][byte] = crc >> 8 ^ tables[0][crc & 255];
        }
}

static uint32_t from_tables(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint32_t low = crc ^ (data[0] | data[1] << 8 | data[2] << 16 | (uint32_t)data[3] << 24);
        crc = tables[7][low & 255] ^ tables[6][low >> 8 & 255] ^ tables[5][low >> 16 & 255] ^
              tables[4][low >> 24] ^ tables[3][data[4]] ^ tables[2][data[5]] ^ tables[1][data[6]] ^
              tables[0][data[7]];
    }
    for (; size > 0; size--)
        crc = crc >> 8 ^ tables[0][(crc ^ *data++) & 255];
    return crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

#define LEAST_FOLDED 16
#define WITH_FOLDING __attribute__((target("pclmul,sse4.1")))

static inline __m128i load(const uint8_t *data) { return _mm_loadu_si128((const __m128i *)data); }

/* Moves 16 bytes ahead by as many bits as the two constants stand for, onto what is there. */
WITH_FOLDING static inline __m128i fold(__m128i value, __m128i constants, __m128i there)
{
    __m128i low = _mm_clmulepi64_si128(value, constants, 0x00);
    __m128i high = _mm_clmulepi64_si128(value, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

/* Divides 128 bits by the polynomial: to 96, to 64, and to 32 bits as Barrett does. */
WITH_FOLDING static uint32_t remainder_of(__m128i value, __m128i by_128)
{
    const __m128i by_64 = _mm_set_epi64x(0, 0x163cd6124);
    const __m128i barrett = _mm_set_epi64x(0x1f7011641, 0x1db710641); /* quotient, polynomial */
    const __m128i words = _mm_setr_epi32(-1, 0, -1, 0);
    value = _mm_xor_si128(_mm_srli_si128(value, 8), _mm_clmulepi64_si128(value, by_128, 0x10));
    __m128i high = _mm_srli_si128(value, 4);
    value = _mm_xor_si128(high, _mm_clmulepi64_si128(_mm_and_si128(value, words), by_64, 0x00));
    __m128i quotient = _mm_clmulepi64_si128(_mm_and_si128(value, words), barrett, 0x10);
    quotient = _mm_clmulepi64_si128(_mm_and_si128(quotient, words), barrett, 0x00);
    return (uint32_t)_mm_extract_epi32(_mm_xor_si128(value, quotient), 1);
}

/* size is a multiple of 16, and not 0. */
WITH_FOLDING static uint32_t from_folding(uint32_t crc, const uint8_t *data, size_t size)
{
    const __m128i by_512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i by_128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i first = _mm_xor_si128(load(data), _mm_cvtsi32_si128((int)crc));
    const uint8_t *end = data + size;
    data += 16;
    if (size >= 64) {
        __m128i second = load(data), third = load(data + 16), fourth = load(data + 32);
        for (data += 48; end - data >= 64; data += 64) {
            first = fold(first, by_512, load(data));
            second = fold(second, by_512, load(data + 16));
            third = fold(third, by_512, load(data + 32));
            fourth = fold(fourth, by_512, load(data + 48));
        }
        first = fold(first, by_128, second);
        first = fold(first, by_128, third);
        first = fold(first, by_128, fourth);
    }
    for (; data < end; data += 16)
        first = fold(first, by_128, load(data));
    return remainder_of(first, by_128);
}
#endif

uint32_t shardio_crc32(uint32_t crc, const uint8_t *data, size_t size)
{
    crc = ~crc;
#if defined(__x86_64__)
    if (size >= LEAST_FOLDED && __builtin_cpu_supports("pclmul") &&
        __builtin_cpu_supports("sse4.1")) {
        size_t folded = size & ~(size_t)15;
        crc = from_folding(crc, data, folded);
        data += folded;
        size -= folded;
    }
#endif
    return ~from_tables(crc, data, size);
}

#endif
