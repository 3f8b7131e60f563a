/* Resizing: what resample.c and antialias.c have in common.
 *
 * The results are those of the libraries that the Python path calls, so their arithmetic is done
 * step by step. Both weight the columns first and the rows second. Here a row of the source takes
 * the first pass when a row of the slot first needs it, and waits in a ring of as many rows as one
 * row of the slot needs, so that the work stays in a processor's first cache. A few rows take it
 * together, as their weights are the same. If the slot is mirrored, the weights of its columns are.
 *
 * Where the processor has AVX2, the passes use it. They compute in whole numbers, so the pixels are
 * the same without. Weights are computed in floating point: compile without -ffast-math, and with
 * -ffp-contract=off.
 */
#ifndef SHARDIO_RESAMPLE_H
#define SHARDIO_RESAMPLE_H

#include <string.h>

#include "core.h"

#if defined(__GNUC__) && defined(__x86_64__) && !defined(SHARDIO_WITHOUT_AVX2)
#include <immintrin.h>
#define HAS_AVX2_CODE 1
#define AVX2 __attribute__((target("avx2")))
#else
#define HAS_AVX2_CODE 0
#endif

#ifdef __GNUC__
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum {
  LONGEST = 65535,   /* most pixels of a side */
  MOST_CHANNELS = 4, /* of what is weighted */
  WIDE_ROWS = 2,     /* of the source that take the first pass together */
  NARROW_ROWS = 4,   /* the same for results of 8 bits */
  PADDING = 64,      /* bytes behind a row of a ring, which AVX2 code may read and write */
};

/* What each pixel of a slot is made of, along one side. */
struct taps {
  int32_t count;      /* pixels of the slot */
  int32_t most;       /* pixels of the source for each */
  int32_t stride;     /* weights for each: `most`, and zeros */
  int32_t shift;      /* of the sum, after half is added */
  int32_t half;
  int32_t begin, end; /* pixels of the slot for which AVX2 code may load what it does */
  int32_t *places;    /* first pixel of the source for each; they rise, or fall if mirrored */
  int16_t *weights;
};

/* Rows of the source that had the first pass. */
struct ring {
  uint8_t *bytes;
  size_t stride;
  int32_t rows;
  int wide;
  int64_t made; /* rows below this one are in the ring, or not needed */
};

/* first_pass.c */

/* Finds begin and end of taps for rows of `width` pixels. */
void find_loadable(struct taps *taps, int32_t width, int32_t channels, int wide);

/* Has the rows from first to end take the first pass, and a few more. */
void make_rows(struct ring *ring, const struct picture *source, const struct taps *across,
               int64_t first, int64_t end);

#if HAS_AVX2_CODE
INLINE int use_avx2(void) { return __builtin_cpu_supports("avx2"); }
#endif

INLINE size_t padded(size_t size) { return (size + 2 * PADDING - 1) / PADDING * PADDING; }

/* Returns the next part of a buffer, of a padded size. */
INLINE void *part_of(uint8_t **rest, size_t size) {
  void *part = *rest;
  *rest += size;
  return part;
}

INLINE const uint8_t *row_of(const struct picture *picture, int64_t row) {
  return picture->pixels + (ptrdiff_t)row * picture->stride;
}

INLINE uint8_t *in_ring(const struct ring *ring, int64_t row) {
  return ring->bytes + (size_t)(row % ring->rows) * ring->stride;
}

INLINE int32_t rounded_up(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

INLINE size_t places_size(int32_t count) { return padded((size_t)count * sizeof(int32_t)); }

INLINE size_t weights_size(int32_t count, int32_t stride) {
  return padded((size_t)count * (size_t)stride * sizeof(int16_t));
}

INLINE uint8_t to_byte(int32_t value) {
  return (uint8_t)(value < 0 ? 0 : value > UINT8_MAX ? UINT8_MAX : value);
}

INLINE void mirror(int32_t *places, int32_t count) {
  for (int32_t left = 0, right = count - 1; left < right; left++, right--) {
    int32_t place = places[left];
    places[left] = places[right];
    places[right] = place;
  }
}

#if HAS_AVX2_CODE

AVX2 INLINE __m128i load_16(const void *from) { return _mm_loadu_si128(from); }

/* Two weights in all places. */
AVX2 INLINE __m256i two_weights(const int16_t *weights) {
  int32_t both;
  memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

#endif

/* The properties of Axis. */

INLINE double axis_scale(const struct axis *axis) {
  return axis->length / ((double)axis->resized * axis->shrink);
}

INLINE int32_t axis_first(const struct axis *axis) { return axis->offset / axis->shrink; }

INLINE double axis_start(const struct axis *axis) {
  return (double)axis->offset / axis->shrink - axis_first(axis);
}

INLINE int32_t axis_reach(const struct axis *axis) {
  return (axis->offset + axis->length + axis->shrink - 1) / axis->shrink - axis_first(axis);
}

INLINE int is_sound(const struct axis *axis, int32_t side, int32_t kept) {
  return side > 0 && side <= LONGEST && axis->kept == kept && kept > 0 && kept <= LONGEST &&
         axis->window >= 0 && axis->resized > 0 && kept <= axis->resized - axis->window &&
         axis->offset >= 0 && axis->offset <= LONGEST && axis->length > 0 &&
         axis->length <= LONGEST && axis->shrink > 0 && axis->shrink <= LONGEST;
}

/* Whether axes are such as are computed here, and fit the pictures. */
INLINE int are_sound(const struct picture *source, const struct axis *rows,
                     const struct axis *columns, const struct picture *out, int32_t most_channels) {
  return is_sound(rows, source->height, out->height) &&
         is_sound(columns, source->width, out->width) && rows->shrink == columns->shrink &&
         source->channels == out->channels && out->channels > 0 && out->channels <= most_channels;
}

#endif
