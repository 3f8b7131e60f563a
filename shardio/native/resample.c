/* Resize pictures: with two taps, antialiased, and to the nearest pixel.
 *
 * The results are those of the libraries that the Python path calls, so their arithmetic is done
 * step by step: OpenCV's resize (modules/imgproc/src/resize.simd.hpp) and torch's antialiased
 * kernel for bytes (aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h, after Pillow-SIMD).
 * Both weight the columns first and the rows second. Here a row of the source takes the first pass
 * when a row of the slot first needs it, and waits in a ring of as many rows as one row of the slot
 * needs, so that the work stays in a processor's first cache. Two rows take it together, as their
 * weights are the same. If the slot is mirrored, the weights of its columns are.
 *
 * Where the processor has AVX2, the passes use it. They compute in whole numbers, so the pixels are
 * the same without. Weights are computed in floating point: compile without -ffast-math, and with
 * -ffp-contract=off.
 */
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

static int use_avx2(void) {
#if HAS_AVX2_CODE
  return __builtin_cpu_supports("avx2");
#else
  return 0;
#endif
}

static size_t padded(size_t size) { return (size + 2 * PADDING - 1) / PADDING * PADDING; }

/* Returns the next part of a buffer, of a padded size. */
static void *part_of(uint8_t **rest, size_t size) {
  void *part = *rest;
  *rest += size;
  return part;
}

static const uint8_t *row_of(const struct picture *picture, int64_t row) {
  return picture->pixels + (ptrdiff_t)row * picture->stride;
}

static int is_sound(const struct axis *axis, int32_t side, int32_t kept) {
  return side > 0 && side <= LONGEST && axis->kept == kept && kept > 0 && kept <= LONGEST &&
         axis->window >= 0 && axis->resized > 0 && kept <= axis->resized - axis->window &&
         axis->offset >= 0 && axis->offset <= LONGEST && axis->length > 0 &&
         axis->length <= LONGEST && axis->shrink > 0 && axis->shrink <= LONGEST;
}

static int are_sound(const struct picture *source, const struct axis *rows,
                     const struct axis *columns, const struct picture *out, int32_t most_channels) {
  return is_sound(rows, source->height, out->height) &&
         is_sound(columns, source->width, out->width) && rows->shrink == columns->shrink &&
         source->channels == out->channels && out->channels > 0 && out->channels <= most_channels;
}

static void mirror(int32_t *places, int32_t count) {
  for (int32_t left = 0, right = count - 1; left < right; left++, right--) {
    int32_t place = places[left];
    places[left] = places[right];
    places[right] = place;
  }
}

/* The first pass ------------------------------------------------------------------------------- */

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

static int32_t rounded_up(int32_t value, int32_t unit) { return (value + unit - 1) / unit * unit; }

static size_t places_size(int32_t count) { return padded((size_t)count * sizeof(int32_t)); }

static size_t weights_size(int32_t count, int32_t stride) {
  return padded((size_t)count * (size_t)stride * sizeof(int16_t));
}

/* Finds begin and end for rows of `width` pixels. AVX2 code loads eight gray pixels at once, or the
 * 16 bytes that hold four of several channels; but pairs of gray pixels one by one. */
static void find_loadable(struct taps *taps, int32_t width, int32_t channels, int wide) {
  int32_t bytes = channels > 1 ? (rounded_up(taps->most, 4) - 4) * channels + 16
                  : wide       ? 2
                               : rounded_up(taps->most, 8);
  int32_t spare = width * channels - bytes, last = spare < 0 ? -1 : spare / channels;
  taps->begin = 0;
  while (taps->begin < taps->count && taps->places[taps->begin] > last) taps->begin++;
  taps->end = taps->count;
  while (taps->end > taps->begin && taps->places[taps->end - 1] > last) taps->end--;
}

/* Rows that take the first pass together, and where the results go. */
struct rows {
  const uint8_t *from[NARROW_ROWS];
  uint8_t *to[NARROW_ROWS];
};

static uint8_t to_byte(int32_t value) {
  return (uint8_t)(value < 0 ? 0 : value > UINT8_MAX ? UINT8_MAX : value);
}

INLINE void cross_plainly(const struct taps *taps, int32_t channels, int wide, int32_t begin,
                          int32_t end, const uint8_t *row, void *out) {
  for (int32_t column = begin; column < end; column++) {
    const uint8_t *pixels = row + (ptrdiff_t)taps->places[column] * channels;
    const int16_t *weights = taps->weights + (ptrdiff_t)column * taps->stride;
    for (int32_t channel = 0; channel < channels; channel++) {
      int32_t sum = taps->half, at = column * channels + channel;
      for (int32_t tap = 0; tap < taps->most; tap++)
        sum += pixels[(ptrdiff_t)tap * channels + channel] * weights[tap];
      if (wide)
        ((int16_t *)out)[at] = (int16_t)(sum >> taps->shift);
      else
        ((uint8_t *)out)[at] = to_byte(sum >> taps->shift);
    }
  }
}

/* Weights the pixels of one row for those of the slot from begin to end. The results are 16 bits
 * wide, or bytes. */
static void cross(const struct taps *taps, int32_t channels, int wide, int32_t begin, int32_t end,
                  const uint8_t *row, void *out) {
  if (channels == 3 && wide) /* known to the compiler */
    cross_plainly(taps, 3, 1, begin, end, row, out);
  else if (channels == 3)
    cross_plainly(taps, 3, 0, begin, end, row, out);
  else
    cross_plainly(taps, channels, wide, begin, end, row, out);
}

#if HAS_AVX2_CODE

AVX2 INLINE __m128i load_16(const void *from) { return _mm_loadu_si128(from); }

AVX2 INLINE __m256i twice(__m128i half) { return _mm256_broadcastsi128_si256(half); }

AVX2 INLINE __m256i two_rows(const uint8_t *upper, const uint8_t *lower) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(upper)), load_16(lower), 1);
}

/* Two weights in all places. */
AVX2 INLINE __m256i two_weights(const int16_t *weights) {
  int32_t both;
  memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

/* Order that pairs the channels of a pixel with those of the next one, as 16-bit numbers. */
AVX2 INLINE __m256i pairing(int32_t channels, int32_t pixel) {
  int8_t order[16];
  for (int32_t channel = 0; channel < 4; channel++) {
    int32_t at = pixel * channels + channel;
    order[4 * channel] = (int8_t)at;
    order[4 * channel + 2] = (int8_t)(at + channels);
    order[4 * channel + 1] = order[4 * channel + 3] = -1;
  }
  return twice(load_16(order));
}

/* Adds two taps of four channels, of an upper and of a lower row. */
AVX2 INLINE __m256i add_taps(__m256i sums, __m256i pixels, __m256i order, __m256i weights) {
  __m256i pairs = _mm256_shuffle_epi8(pixels, order);
  return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, weights));
}

/* Computes a pixel of the slot for pairs of rows: four channels of each. */
AVX2 INLINE void sum_colours(struct taps taps, int32_t channels, int pairs, int32_t column,
                             struct rows rows, __m256i *sums) {
  const __m256i first = pairing(channels, 0), second = pairing(channels, 2);
  const int32_t by_four = (taps.most + 1) / 4 * 4;
  ptrdiff_t place = (ptrdiff_t)taps.places[column] * channels;
  const int16_t *weights = taps.weights + (ptrdiff_t)column * taps.stride;
  for (int pair = 0; pair < pairs; pair++) sums[pair] = _mm256_set1_epi32(taps.half);
  for (int32_t tap = 0; tap < by_four; tap += 4, place += 4 * channels, weights += 4) {
    for (int pair = 0; pair < pairs; pair++) {
      __m256i pixels = two_rows(rows.from[2 * pair] + place, rows.from[2 * pair + 1] + place);
      sums[pair] = add_taps(sums[pair], pixels, first, two_weights(weights));
      sums[pair] = add_taps(sums[pair], pixels, second, two_weights(weights + 2));
    }
  }
  for (int pair = 0; pair < pairs; pair++) {
    if (by_four < taps.most)
      sums[pair] = add_taps(
          sums[pair], two_rows(rows.from[2 * pair] + place, rows.from[2 * pair + 1] + place),
          first, two_weights(weights));
    sums[pair] = _mm256_sra_epi32(sums[pair], _mm_cvtsi32_si128(taps.shift));
  }
}

/* Weights the loadable pixels of rows; returns where they end, as they are done by two. */
AVX2 INLINE int32_t cross_colours(struct taps taps, int32_t channels, int wide, struct rows rows) {
  const __m256i dense_words =
      twice(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1));
  const __m256i dense_bytes =
      twice(_mm_setr_epi8(0, 1, 2, 4, 5, 6, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1));
  const int pairs = wide ? WIDE_ROWS / 2 : NARROW_ROWS / 2;
  if (wide) taps.most = taps.stride = 2, taps.half = 0, taps.shift = 4; /* tells the compiler */
  int32_t column = taps.begin;
  for (; column + 2 <= taps.end; column += 2) {
    __m256i left[NARROW_ROWS / 2], right[NARROW_ROWS / 2];
    sum_colours(taps, channels, pairs, column, rows, left);
    sum_colours(taps, channels, pairs, column + 1, rows, right);
    for (int pair = 0; pair < pairs; pair++) {
      __m256i both = _mm256_packs_epi32(left[pair], right[pair]);
      uint8_t *upper = rows.to[2 * pair] + ((ptrdiff_t)column * channels << wide);
      uint8_t *lower = rows.to[2 * pair + 1] + ((ptrdiff_t)column * channels << wide);
      if (wide) {
        if (channels == 3) both = _mm256_shuffle_epi8(both, dense_words);
        _mm_storeu_si128((void *)upper, _mm256_castsi256_si128(both));
        _mm_storeu_si128((void *)lower, _mm256_extracti128_si256(both, 1));
      } else {
        both = _mm256_packus_epi16(both, both);
        if (channels == 3) both = _mm256_shuffle_epi8(both, dense_bytes);
        _mm_storel_epi64((void *)upper, _mm256_castsi256_si128(both));
        _mm_storel_epi64((void *)lower, _mm256_extracti128_si256(both, 1));
      }
    }
  }
  return column;
}

AVX2 INLINE long long four_pairs(const uint8_t *row, const int32_t *places) {
  uint16_t pairs[4];
  for (int at = 0; at < 4; at++) memcpy(&pairs[at], row + places[at], sizeof pairs[at]);
  return (long long)(pairs[0] | (uint64_t)pairs[1] << 16 | (uint64_t)pairs[2] << 32 |
                     (uint64_t)pairs[3] << 48);
}

/* The same for one row of one channel and two taps. */
AVX2 INLINE int32_t cross_gray_pairs(struct taps taps, const uint8_t *row, uint8_t *out) {
  int32_t column = taps.begin;
  for (; column + 8 <= taps.end; column += 8) {
    const int32_t *places = taps.places + column;
    __m256i pairs = _mm256_cvtepu8_epi16(
        _mm_set_epi64x(four_pairs(row, places + 4), four_pairs(row, places)));
    __m256i weights = _mm256_loadu_si256((const void *)(taps.weights + 2 * column));
    __m256i sums = _mm256_srai_epi32(_mm256_madd_epi16(pairs, weights), 4);
    _mm_storeu_si128((void *)(out + 2 * column),
                     _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
  }
  return column;
}

AVX2 INLINE __m128i gray_sums(struct taps taps, int32_t column, const uint8_t *row) {
  const uint8_t *pixels = row + taps.places[column];
  const int16_t *weights = taps.weights + (ptrdiff_t)column * taps.stride;
  __m128i sums = _mm_setzero_si128();
  for (int32_t tap = 0; tap < taps.most; tap += 8) {
    __m128i eight = _mm_cvtepu8_epi16(_mm_loadl_epi64((const void *)(pixels + tap)));
    sums = _mm_add_epi32(sums, _mm_madd_epi16(eight, load_16(weights + tap)));
  }
  return sums;
}

/* The same for one row of one channel and any number of taps. */
AVX2 INLINE int32_t cross_gray(struct taps taps, const uint8_t *row, uint8_t *out) {
  int32_t column = taps.begin;
  for (; column + 4 <= taps.end; column += 4) {
    __m128i left = _mm_hadd_epi32(gray_sums(taps, column, row), gray_sums(taps, column + 1, row));
    __m128i right =
        _mm_hadd_epi32(gray_sums(taps, column + 2, row), gray_sums(taps, column + 3, row));
    __m128i sums = _mm_add_epi32(_mm_hadd_epi32(left, right), _mm_set1_epi32(taps.half));
    sums = _mm_sra_epi32(sums, _mm_cvtsi32_si128(taps.shift));
    sums = _mm_packs_epi32(sums, sums);
    int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(sums, sums));
    memcpy(out + column, &four, sizeof four);
  }
  return column;
}

AVX2 static int32_t cross_avx2(const struct taps *taps, int32_t channels, int wide,
                               const struct rows *rows) {
  int32_t done = taps->begin;
  switch (2 * channels + wide) { /* what is known to the compiler */
    case 2:
      for (int row = 0; row < NARROW_ROWS; row++)
        done = cross_gray(*taps, rows->from[row], rows->to[row]);
      return done;
    case 3:
      for (int row = 0; row < WIDE_ROWS; row++)
        done = cross_gray_pairs(*taps, rows->from[row], rows->to[row]);
      return done;
    case 6: return cross_colours(*taps, 3, 0, *rows);
    case 7: return cross_colours(*taps, 3, 1, *rows);
    case 8: return cross_colours(*taps, 4, 0, *rows);
    case 9: return cross_colours(*taps, 4, 1, *rows);
    default: return done;
  }
}

#endif

/* Rows of the source that had the first pass. */
struct ring {
  uint8_t *bytes;
  size_t stride;
  int32_t rows;
  int wide;
  int64_t made; /* rows below this one are in the ring, or not needed */
};

static uint8_t *in_ring(const struct ring *ring, int64_t row) {
  return ring->bytes + (size_t)(row % ring->rows) * ring->stride;
}

/* Has the rows from first to end take the first pass, and a few more. */
static void make_rows(struct ring *ring, const struct picture *source, const struct taps *across,
                      int64_t first, int64_t end) {
  const int32_t channels = source->channels;
  const int together = ring->wide ? WIDE_ROWS : NARROW_ROWS;
  if (ring->made < first) ring->made = first;
  for (; ring->made < end; ring->made += together) {
    struct rows rows;
    for (int row = 0; row < together; row++) {
      int64_t at = ring->made + row;
      rows.from[row] = row_of(source, at < source->height ? at : source->height - 1);
      rows.to[row] = in_ring(ring, at);
    }
    int32_t done = across->begin;
#if HAS_AVX2_CODE
    if (use_avx2()) done = cross_avx2(across, channels, ring->wide, &rows);
#endif
    for (int row = 0; row < together; row++) {
      cross(across, channels, ring->wide, 0, across->begin, rows.from[row],
            rows.to[row]);
      cross(across, channels, ring->wide, done, across->count, rows.from[row],
            rows.to[row]);
    }
  }
}

/* Two taps ------------------------------------------------------------------------------------- */

enum { ONE = 2048 }; /* sum of two weights */

/* Where the pixels of a slot lie in the source. */
struct line {
  double origin, scale;
  int32_t size; /* pixels of the source; those beyond equal the last ones */
};

/* The two pixels of the source around a place, and their weights. */
struct neighbours {
  int32_t first, second;
  int16_t weights[2];
};

static int32_t clipped(int32_t place, int32_t size) {
  return place < 0 ? 0 : place < size ? place : size - 1;
}

/* Rounds half to even. */
static int16_t rounded(float value) {
  const float whole = 8388608.0f; /* from here on, floats have no fraction */
  return (int16_t)((value + whole) - whole);
}

static struct neighbours neighbours_of(const struct line *line, int64_t pixel) {
  float place = (float)(((double)pixel + 0.5) * line->scale + line->origin - 0.5);
  int32_t floor = (int32_t)place;
  if ((float)floor > place) floor--;
  float part = place - (float)floor;
  struct neighbours found = {clipped(floor, line->size),
                             clipped(floor + 1, line->size),
                             {rounded((1.0f - part) * ONE), rounded(part * ONE)}};
  return found;
}

static void find_two_taps(const struct line *line, const struct axis *columns, int flip,
                          struct taps *taps) {
  for (int32_t column = 0; column < taps->count; column++) {
    struct neighbours found = neighbours_of(line, (int64_t)columns->window + column);
    int32_t first = found.first, far = found.weights[1];
    if (first == found.second) { /* beyond an edge */
      far = first > 0 ? ONE : 0;
      first = first > 0 ? first - 1 : 0;
    }
    int32_t at = flip ? taps->count - 1 - column : column;
    taps->places[at] = first;
    taps->weights[2 * at] = (int16_t)(ONE - far);
    taps->weights[2 * at + 1] = (int16_t)far;
  }
}

INLINE void blend_plainly(const int16_t *first, const int16_t *second, const int16_t *weights,
                          int32_t count, uint8_t *restrict out) {
  int16_t near = weights[0], far = weights[1];
  for (int32_t at = 0; at < count; at++) {
    int16_t upper = (int16_t)((first[at] * near) >> 16);
    int16_t lower = (int16_t)((second[at] * far) >> 16);
    out[at] = (uint8_t)((int16_t)(upper + lower + 2) >> 2);
  }
}

#if HAS_AVX2_CODE
AVX2 static void blend_avx2(const int16_t *first, const int16_t *second, const int16_t *weights,
                            int32_t count, uint8_t *restrict out) {
  blend_plainly(first, second, weights, count, out);
}
#endif

/* Weights two rows that had the first pass, as OpenCV's second pass does. */
static void blend(const int16_t *first, const int16_t *second, const int16_t *weights,
                  int32_t count, uint8_t *out) {
#if HAS_AVX2_CODE
  if (use_avx2()) {
    blend_avx2(first, second, weights, count, out);
    return;
  }
#endif
  blend_plainly(first, second, weights, count, out);
}

static enum status resize_two_tap(const struct picture *source, const struct line *down,
                                  const struct line *across, const struct axis *rows,
                                  const struct axis *columns, int flip, const struct picture *out,
                                  struct buffer *scratch) {
  int64_t last_row = (int64_t)rows->window + rows->kept - 1;
  int64_t last_column = (int64_t)columns->window + columns->kept - 1;
  if (neighbours_of(down, last_row).second >= source->height ||
      neighbours_of(across, last_column).second >= source->width)
    return NOT_TAKEN;
  int32_t values = columns->kept * source->channels;
  struct taps taps = {.count = columns->kept, .most = 2, .stride = 2, .shift = 4};
  if (across->size < 2) taps.most = 1;
  struct ring ring = {.stride = padded((size_t)values * sizeof(int16_t)), .rows = 4, .wide = 1};
  size_t for_ring = ring.stride * (size_t)ring.rows;
  uint8_t *rest = buffer_take(
      scratch, places_size(taps.count) + weights_size(taps.count, taps.stride) + for_ring);
  if (rest == NULL) return NO_MEMORY;
  taps.places = part_of(&rest, places_size(taps.count));
  taps.weights = part_of(&rest, weights_size(taps.count, taps.stride));
  ring.bytes = part_of(&rest, for_ring);
  find_two_taps(across, columns, flip, &taps);
  find_loadable(&taps, source->width, source->channels, ring.wide);
  for (int32_t row = 0; row < rows->kept; row++) {
    struct neighbours found = neighbours_of(down, (int64_t)rows->window + row);
    make_rows(&ring, source, &taps, found.first, (int64_t)found.second + 1);
    blend((const void *)in_ring(&ring, found.first), (const void *)in_ring(&ring, found.second),
          found.weights, values,
          out->pixels + row * out->stride);
  }
  return DONE;
}

static struct line whole_line(const struct axis *axis) {
  struct line line = {0, 1.0 / ((double)axis->resized / axis->length), axis->length};
  return line;
}

static struct line shrunk_line(const struct axis *axis, int32_t size) {
  double shrink = axis->shrink;
  struct line line = {axis->offset / shrink, axis->length / (axis->resized * shrink), size};
  return line;
}

/* OpenCV takes a scale of exactly 2 for a mean of four pixels. So it is here: both weights are one
 * half, and nothing is lost to rounding. */
enum status resize_linear(const struct picture *source, const struct axis *rows,
                          const struct axis *columns, int flip, const struct picture *out,
                          struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, MOST_CHANNELS) || rows->shrink != 1) return NOT_TAKEN;
  struct line down = whole_line(rows), across = whole_line(columns);
  return resize_two_tap(source, &down, &across, rows, columns, flip, out, scratch);
}

/* OpenCV computes in float what is computed in whole numbers here, to one level the same. */
enum status resize_shrunk(const struct picture *source, const struct axis *rows,
                          const struct axis *columns, int flip, const struct picture *out,
                          struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, MOST_CHANNELS)) return NOT_TAKEN;
  struct line down = shrunk_line(rows, source->height);
  struct line across = shrunk_line(columns, source->width);
  return resize_two_tap(source, &down, &across, rows, columns, flip, out, scratch);
}

/* Antialiased ---------------------------------------------------------------------------------- */

enum {
  MOST_PRECISION = 22,
  TAPS_AT_ONCE = 8,
  AROUND = 4096,    /* the same as _AROUND and _MOST_COMPUTED of shardio/fields/resample.py */
  MOST_COMPUTED = 4,
};

/* A side of a picture under a filter. */
struct filter {
  int cubic;
  double start, scale, support;
  int32_t reach;      /* pixels of the source that have weights */
  int32_t available;  /* pixels of the source that are there */
  int32_t most;       /* weights of a pixel of the slot, at most */
  int64_t begin, end; /* pixels whose weights have a say in how weights are rounded */
};

static double axis_scale(const struct axis *axis) {
  return axis->length / ((double)axis->resized * axis->shrink);
}

static int32_t axis_first(const struct axis *axis) { return axis->offset / axis->shrink; }

static double axis_start(const struct axis *axis) {
  return (double)axis->offset / axis->shrink - axis_first(axis);
}

static int32_t axis_reach(const struct axis *axis) {
  return (axis->offset + axis->length + axis->shrink - 1) / axis->shrink - axis_first(axis);
}

/* Returns a filter as NumPy uses it, or torch, which sees only the pixels that are needed and
 * starts with the first pixel before a window. */
static struct filter filter_of(const struct axis *axis, int cubic, int32_t side, int like_torch) {
  struct filter filter = {.cubic = cubic, .start = axis_start(axis), .scale = axis_scale(axis)};
  double stretch = filter.scale > 1 ? filter.scale : 1, taps = cubic ? 2 : 1;
  int64_t end = (int64_t)axis->window + axis->kept;
  double last = filter.start + ((double)end - 0.5) * filter.scale + taps * stretch + 0.5;
  filter.reach = axis_reach(axis);
  int32_t needed = last < filter.reach ? (int32_t)last : filter.reach;
  if (like_torch) {
    filter.reach = needed;
    filter.scale = 1 / (1 / filter.scale);
    filter.end = end == needed && axis->length != axis->resized ? end + 1 : end;
  } else {
    filter.begin = axis->window > AROUND ? axis->window - AROUND : 0;
    filter.end = end + AROUND < axis->resized ? end + AROUND : axis->resized;
  }
  filter.support = taps * (filter.scale > 1 ? filter.scale : 1);
  filter.available = filter.reach < side ? filter.reach : side;
  int32_t whole = (int32_t)filter.support;
  filter.most = 2 * (whole + (whole < filter.support)) + 1;
  if (filter.most > filter.reach) filter.most = filter.reach;
  return filter;
}

static double response(int cubic, double distance) {
  if (distance < 0) distance = -distance;
  if (!cubic) return distance < 1 ? 1 - distance : 0;
  if (distance < 1) return (1.5 * distance - 2.5) * distance * distance + 1;
  return distance < 2 ? (((distance - 5) * distance + 8) * distance - 4) * -0.5 : 0;
}

/* Computes the weights of one pixel of the slot; returns how many. */
static int32_t weigh(const struct filter *filter, int64_t pixel, double *weights, int32_t *low) {
  double centre = filter->start + ((double)pixel + 0.5) * filter->scale;
  double inverse = filter->scale >= 1 ? 1 / filter->scale : 1, total = 0;
  double begin = centre - filter->support + 0.5, end = centre + filter->support + 0.5;
  *low = begin > 0 ? (int32_t)begin : 0;
  int32_t count = (end < filter->reach ? (int32_t)end : filter->reach) - *low;
  if (count > filter->most) count = filter->most;
  for (int32_t at = 0; at < count; at++) {
    weights[at] = response(filter->cubic, (at + *low - centre + 0.5) * inverse);
    total += weights[at];
  }
  for (int32_t at = 0; at < count; at++) weights[at] /= total;
  return count;
}

/* Writes the weights of a pixel of the slot as torch rounds them. */
static void round_weights(struct taps *taps, int32_t at, int32_t lead, const double *weights,
                          int32_t count) {
  int16_t *whole = taps->weights + (ptrdiff_t)at * taps->stride;
  memset(whole, 0, (size_t)taps->stride * sizeof *whole);
  for (int32_t tap = 0; tap < count; tap++) {
    double scaled = weights[tap] * (1 << taps->shift);
    whole[lead + tap] = (int16_t)(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
  }
}

/* Finds all weights of an axis. `exact` has room for those of the slot, and of one more pixel.
 * Returns 0 if the source lacks pixels. */
static int find_taps(const struct filter *filter, const struct axis *axis, int flip, double *exact,
                     int32_t *counts, struct taps *taps) {
  double greatest = 0;
  taps->most = 1;
  for (int64_t pixel = filter->begin; pixel < filter->end; pixel++) {
    int is_kept = pixel >= axis->window && pixel < axis->window + (int64_t)axis->kept;
    int32_t at = is_kept ? (int32_t)(pixel - axis->window) : axis->kept, low;
    double *weights = exact + (ptrdiff_t)at * filter->most;
    int32_t count = weigh(filter, pixel, weights, &low);
    for (int32_t tap = 0; tap < count; tap++)
      if (weights[tap] > greatest) greatest = weights[tap];
    if (!is_kept) continue;
    if (count <= 0 || low + count > filter->available) return 0;
    taps->places[at] = low;
    counts[at] = count;
    if (count > taps->most) taps->most = count;
  }
  while (taps->shift < MOST_PRECISION && (int)(0.5 + greatest * (1 << (taps->shift + 1))) < 1 << 15)
    taps->shift++;
  taps->half = 1 << (taps->shift - 1);
  taps->stride = rounded_up(taps->most, TAPS_AT_ONCE);
  for (int32_t at = 0; at < taps->count; at++) {
    int32_t low = taps->places[at], latest = filter->available - taps->most;
    taps->places[at] = low < latest ? low : latest;
    round_weights(taps, flip ? taps->count - 1 - at : at, low - taps->places[at],
                  exact + (ptrdiff_t)at * filter->most, counts[at]);
  }
  if (flip) mirror(taps->places, taps->count);
  return 1;
}

INLINE void mix_plainly(const uint8_t *const *lines, const struct taps *taps,
                        const int16_t *weights, int32_t begin, int32_t count, uint8_t *out) {
  for (int32_t at = begin; at < count; at++) {
    int32_t sum = taps->half;
    for (int32_t tap = 0; tap < taps->most; tap++) sum += lines[tap][at] * weights[tap];
    out[at] = to_byte(sum >> taps->shift);
  }
}

#if HAS_AVX2_CODE
/* Of 32 bytes of two rows, pairs of bytes of both meet their two weights. */
AVX2 static void mix_avx2(const uint8_t *const *lines, const struct taps *taps,
                          const int16_t *weights, int32_t count, uint8_t *out) {
  const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi32(taps->half);
  const __m128i shift = _mm_cvtsi32_si128(taps->shift);
  for (int32_t at = 0; at < count; at += 32) {
    __m256i sums[4] = {half, half, half, half};
    for (int32_t tap = 0; tap < taps->most; tap += 2) {
      __m256i even = _mm256_loadu_si256((const void *)(lines[tap] + at));
      __m256i odd = _mm256_loadu_si256((const void *)(lines[tap + 1] + at));
      __m256i low = _mm256_unpacklo_epi8(even, odd), high = _mm256_unpackhi_epi8(even, odd);
      __m256i pairs[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                          _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
      __m256i both = two_weights(weights + tap);
      for (int part = 0; part < 4; part++)
        sums[part] = _mm256_add_epi32(sums[part], _mm256_madd_epi16(pairs[part], both));
    }
    for (int part = 0; part < 4; part++) sums[part] = _mm256_sra_epi32(sums[part], shift);
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                        _mm256_packs_epi32(sums[2], sums[3]));
    uint8_t last[32];
    _mm256_storeu_si256((void *)(count - at < 32 ? last : out + at), bytes);
    if (count - at < 32) memcpy(out + at, last, (size_t)(count - at));
  }
}
#endif

/* Weights rows that had the first pass. There is one line more than taps if their number is odd. */
static void mix(const uint8_t *const *lines, const struct taps *taps, const int16_t *weights,
                int32_t count, uint8_t *out) {
#if HAS_AVX2_CODE
  if (use_avx2()) {
    mix_avx2(lines, taps, weights, count, out);
    return;
  }
#endif
  mix_plainly(lines, taps, weights, 0, count, out);
}

static void fill_antialiased(const struct picture *source, const struct taps *down,
                             const struct taps *across, struct ring *ring, const uint8_t **lines,
                             const struct picture *out) {
  for (int32_t row = 0; row < down->count; row++) {
    int64_t first = down->places[row];
    make_rows(ring, source, across, first, first + down->most);
    for (int32_t tap = 0; tap < down->most; tap++) lines[tap] = in_ring(ring, first + tap);
    lines[down->most] = lines[down->most - 1];
    mix(lines, down, down->weights + (ptrdiff_t)row * down->stride,
        across->count * source->channels, out->pixels + row * out->stride);
  }
}

static size_t exact_size(const struct filter *filter, int32_t count) {
  return padded(((size_t)count + 1) * (size_t)filter->most * sizeof(double));
}

enum status resize_antialiased(const struct picture *source, const struct axis *rows,
                               const struct axis *columns, int cubic, int flip,
                               const struct picture *out, struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, MOST_CHANNELS)) return NOT_TAKEN;
  if (rows->length == rows->resized && columns->length == columns->resized && rows->shrink == 1)
    return resize_nearest(source, rows, columns, flip, out, scratch);
  int64_t computed = ((int64_t)rows->window + rows->kept) * ((int64_t)columns->window + columns->kept);
  int like_torch = rows->shrink == 1 &&
                   computed <= MOST_COMPUTED * (int64_t)rows->kept * columns->kept;
  struct filter over[] = {filter_of(rows, cubic, source->height, like_torch),
                          filter_of(columns, cubic, source->width, like_torch)};
  struct taps taps[] = {{.count = rows->kept}, {.count = columns->kept}};
  struct ring ring = {.stride = padded((size_t)columns->kept * (size_t)source->channels)};
  ring.rows = over[0].most + NARROW_ROWS;
  size_t for_ring = ring.stride * (size_t)ring.rows;
  size_t for_lines = padded(((size_t)over[0].most + 1) * sizeof(uint8_t *));
  size_t for_exact = 0, total = for_ring + for_lines;
  for (int side = 0; side < 2; side++) {
    size_t exact = exact_size(&over[side], taps[side].count);
    if (exact > for_exact) for_exact = exact;
    total += 2 * places_size(taps[side].count) +
             weights_size(taps[side].count, rounded_up(over[side].most, TAPS_AT_ONCE));
  }
  uint8_t *rest = buffer_take(scratch, total + for_exact);
  if (rest == NULL) return NO_MEMORY;
  double *exact = part_of(&rest, for_exact);
  ring.bytes = part_of(&rest, for_ring);
  const uint8_t **lines = part_of(&rest, for_lines);
  for (int side = 0; side < 2; side++) {
    taps[side].places = part_of(&rest, places_size(taps[side].count));
    int32_t *counts = part_of(&rest, places_size(taps[side].count));
    taps[side].weights = part_of(
        &rest, weights_size(taps[side].count, rounded_up(over[side].most, TAPS_AT_ONCE)));
    if (!find_taps(&over[side], side ? columns : rows, side && flip, exact, counts, &taps[side]))
      return NOT_TAKEN;
  }
  find_loadable(&taps[1], source->width, source->channels, 0);
  fill_antialiased(source, &taps[0], &taps[1], &ring, lines, out);
  return DONE;
}

/* Nearest pixels ------------------------------------------------------------------------------- */

enum { MOST_STEPS = 1 << 24 }; /* of a sum; more would take too long */

/* Finds the pixels under the centres of a slot's. The sum is that of Axis.nearest. */
static void find_nearest(const struct axis *axis, int32_t *places) {
  double scale = axis_scale(axis), place = axis_start(axis) + scale / 2;
  for (int32_t step = 0; step < axis->window; step++) place += scale;
  for (int32_t at = 0; at < axis->kept; at++, place += scale) places[at] = (int32_t)place;
}

INLINE void pick_pixels(const int32_t *places, int32_t count, size_t channels, const uint8_t *row,
                        uint8_t *restrict out) {
  for (int32_t at = 0; at < count; at++)
    memcpy(out + (size_t)at * channels, row + (size_t)places[at] * channels, channels);
}

static void pick(const int32_t *places, int32_t count, size_t channels, const uint8_t *row,
                 uint8_t *out) {
  switch (channels) { /* known to the compiler */
    case 1: pick_pixels(places, count, 1, row, out); break;
    case 3: pick_pixels(places, count, 3, row, out); break;
    case 4: pick_pixels(places, count, 4, row, out); break;
    default: pick_pixels(places, count, channels, row, out);
  }
}

enum status resize_nearest(const struct picture *source, const struct axis *rows,
                           const struct axis *columns, int flip, const struct picture *out,
                           struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, INT32_MAX) || rows->window > MOST_STEPS ||
      columns->window > MOST_STEPS)
    return NOT_TAKEN;
  size_t channels = (size_t)source->channels, bytes = (size_t)columns->kept * channels;
  uint8_t *rest = buffer_take(scratch, places_size(rows->kept) + places_size(columns->kept));
  if (rest == NULL) return NO_MEMORY;
  int32_t *down = part_of(&rest, places_size(rows->kept));
  int32_t *across = part_of(&rest, places_size(columns->kept));
  find_nearest(rows, down);
  find_nearest(columns, across);
  if (down[rows->kept - 1] >= source->height || across[columns->kept - 1] >= source->width)
    return NOT_TAKEN;
  if (flip) mirror(across, columns->kept);
  for (int32_t row = 0; row < rows->kept; row++) {
    uint8_t *filled = out->pixels + row * out->stride;
    if (row > 0 && down[row] == down[row - 1])
      memcpy(filled, filled - out->stride, bytes);
    else
      pick(across, columns->kept, channels, row_of(source, down[row]), filled);
  }
  return DONE;
}
