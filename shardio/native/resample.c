/* Resize pictures: two-tap, antialiased, and to the nearest pixel.
 *
 * The results are those of the libraries that the Python path calls, so their arithmetic is done
 * step by step: OpenCV's resize (modules/imgproc/src/resize.simd.hpp) and torch's antialiased
 * kernel for bytes (aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h, which is Pillow-SIMD's).
 * Both take the columns first and the rows second. Here a row of the source takes the first pass
 * once, when a row of the slot first needs it, and waits in a ring of as many rows as one row of
 * the slot needs, so that all this stays in a processor's first cache. Two rows take the first pass
 * together, as its weights are the same. A mirrored slot has the weights of its columns mirrored.
 *
 * Where the processor has AVX2, the passes use it. All arithmetic on pixels is in whole numbers, so
 * the results are the same without. The weights are computed in floating point: this file must not
 * be compiled with -ffast-math, and with -ffp-contract=off where a compiler would fuse by default.
 */
#include <string.h>

#include "core.h"

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define HAS_AVX2_CODE 1
#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline))
#else
#define HAS_AVX2_CODE 0
#define INLINE static inline
#endif

enum {
  LONGEST = 65535,       /* most pixels of a side */
  MOST_CHANNELS = 4,     /* of what is weighted; nearest takes any number */
  PADDING = 64,          /* bytes behind a row of a ring, for code that does many at once */
};

static int use_avx2(void) {
#if HAS_AVX2_CODE
  return __builtin_cpu_supports("avx2");
#else
  return 0;
#endif
}

/* Returns a part of a buffer, and moves on to the next one. */
static void *part_of(uint8_t **buffer, size_t size) {
  void *part = *buffer;
  *buffer += size;
  return part;
}

static size_t padded(size_t size) { return (size + 2 * PADDING - 1) / PADDING * PADDING; }

static const uint8_t *row_of(const struct picture *picture, ptrdiff_t row) {
  return picture->pixels + row * picture->stride;
}

static int is_sound(const struct axis *axis, int32_t side, int32_t out) {
  return side > 0 && side <= LONGEST && axis->kept == out && out > 0 && out <= LONGEST &&
         axis->window >= 0 && axis->resized > 0 && out <= axis->resized - axis->window &&
         axis->offset >= 0 && axis->offset <= LONGEST && axis->length > 0 &&
         axis->length <= LONGEST && axis->shrink > 0 && axis->shrink <= LONGEST;
}

static int are_sound(const struct picture *source, const struct axis *rows,
                     const struct axis *columns, const struct picture *out, int32_t channels) {
  return is_sound(rows, source->height, out->height) &&
         is_sound(columns, source->width, out->width) && rows->shrink == columns->shrink &&
         source->channels == out->channels && out->channels > 0 && out->channels <= channels;
}

/* Two taps ------------------------------------------------------------------------------------- */

enum { ONE = 2048 }; /* sum of two weights */

/* The places in the source of the pixels of a slot along one side. */
struct line {
  double origin, scale;
  int32_t size; /* pixels; those beyond equal the last ones */
};

/* Two pixels of a line, and their weights. */
struct neighbours {
  int32_t first, second;
  int16_t weights[2];
};

/* Which pixels make each pixel of a row of the slot. */
struct taps {
  int32_t count, channels;
  int32_t begin, end; /* pixels between them lie so far from a row's end that AVX2 can load them */
  int32_t step;     /* bytes from the first to the second of two neighbours; 0 if there is one */
  int32_t *places;  /* of the first of the neighbours, in bytes */
  int16_t *weights; /* two for each */
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

/* Returns the last place in a row from which AVX2 code can load the bytes that it does. */
static int32_t last_loadable(int32_t width, int32_t channels) {
  return width * channels - (channels == 1 ? 2 : 16);
}

/* Finds which pixels have places of at most `last`, which rise, or fall if the slot is mirrored. */
static void find_loadable(const int32_t *places, int32_t count, int32_t last, int32_t *begin,
                          int32_t *end) {
  *begin = 0;
  while (*begin < count && places[*begin] > last) ++*begin;
  *end = count;
  while (*end > *begin && places[*end - 1] > last) --*end;
}

static void find_taps(const struct line *line, const struct axis *columns, int flip,
                      int32_t width, struct taps *taps) {
  for (int32_t column = 0; column < taps->count; column++) {
    struct neighbours found = neighbours_of(line, (int64_t)columns->window + column);
    int32_t first = found.first;
    int16_t second_weight = found.weights[1];
    if (found.first == found.second) { /* beyond an edge */
      second_weight = first > 0 ? ONE : 0;
      first = first > 0 ? first - 1 : 0;
    }
    int32_t at = flip ? taps->count - 1 - column : column;
    taps->places[at] = first * taps->channels;
    taps->weights[2 * at] = (int16_t)(ONE - second_weight);
    taps->weights[2 * at + 1] = second_weight;
  }
  find_loadable(taps->places, taps->count, last_loadable(width, taps->channels), &taps->begin,
                &taps->end);
}

INLINE void cross_plainly(const struct taps *taps, int32_t channels, int32_t begin, int32_t end,
                          const uint8_t *row, int16_t *out) {
  for (int32_t column = begin; column < end; column++) {
    const uint8_t *first = row + taps->places[column], *second = first + taps->step;
    int32_t near = taps->weights[2 * column], far = taps->weights[2 * column + 1];
    for (int32_t channel = 0; channel < channels; channel++)
      out[column * channels + channel] =
          (int16_t)((first[channel] * near + second[channel] * far) >> 4);
  }
}

/* First pass over pixels from begin to end. The result has 15 bits, as OpenCV's second pass has. */
static void cross(const struct taps *taps, int32_t begin, int32_t end, const uint8_t *row,
                  int16_t *out) {
  switch (taps->channels) { /* known to the compiler */
    case 1: cross_plainly(taps, 1, begin, end, row, out); break;
    case 3: cross_plainly(taps, 3, begin, end, row, out); break;
    case 4: cross_plainly(taps, 4, begin, end, row, out); break;
    default: cross_plainly(taps, taps->channels, begin, end, row, out);
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

/* The 16 bytes from a place on of two rows. */
AVX2 static inline __m256i of_two(const uint8_t *upper, const uint8_t *lower) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const void *)upper)),
                                 _mm_loadu_si128((const void *)lower), 1);
}

AVX2 static inline __m256i weight_pair(const int16_t *weights) {
  int32_t both;
  memcpy(&both, weights, sizeof both);
  return _mm256_set1_epi32(both);
}

/* Pairs the channels of the pixels `first` and `first + 1` of 16 bytes, as 16-bit numbers. */
AVX2 static inline __m256i pairing(int32_t channels, int32_t first) {
  int8_t order[16];
  for (int32_t channel = 0; channel < 4; channel++) {
    int32_t at = first * channels + channel;
    order[4 * channel] = (int8_t)at;
    order[4 * channel + 1] = -1;
    order[4 * channel + 2] = (int8_t)(at + channels);
    order[4 * channel + 3] = -1;
  }
  return _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)order));
}

/* First pass over loadable pixels of two rows of three or four channels; returns where it ends. */
AVX2 static int32_t cross_colours(const struct taps *taps, const uint8_t *upper,
                                  const uint8_t *lower, int16_t *out_upper, int16_t *out_lower) {
  const int32_t channels = taps->channels;
  const __m256i pairs = pairing(channels, 0);
  const __m256i dense = _mm256_broadcastsi128_si256(
      channels == 3 ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, -1, -1, -1, -1)
                    : _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  int32_t column = taps->begin;
  for (; column + 2 <= taps->end; column += 2) {
    int32_t here = taps->places[column], next = taps->places[column + 1];
    __m256i one = _mm256_madd_epi16(_mm256_shuffle_epi8(of_two(upper + here, lower + here), pairs),
                                    weight_pair(taps->weights + 2 * column));
    __m256i two = _mm256_madd_epi16(_mm256_shuffle_epi8(of_two(upper + next, lower + next), pairs),
                                    weight_pair(taps->weights + 2 * column + 2));
    __m256i both = _mm256_packs_epi32(_mm256_srai_epi32(one, 4), _mm256_srai_epi32(two, 4));
    both = _mm256_shuffle_epi8(both, dense);
    _mm_storeu_si128((void *)(out_upper + column * channels), _mm256_castsi256_si128(both));
    _mm_storeu_si128((void *)(out_lower + column * channels), _mm256_extracti128_si256(both, 1));
  }
  return column;
}

AVX2 static inline uint64_t load_pair(const uint8_t *pair) {
  uint16_t both;
  memcpy(&both, pair, sizeof both);
  return both;
}

AVX2 static inline long long load_four(const uint8_t *row, const int32_t *places) {
  return (long long)(load_pair(row + places[0]) | load_pair(row + places[1]) << 16 |
                     load_pair(row + places[2]) << 32 | load_pair(row + places[3]) << 48);
}

/* First pass over loadable pixels of one row of one channel; returns where it ends. */
AVX2 static int32_t cross_gray(const struct taps *taps, const uint8_t *row, int16_t *out) {
  int32_t column = taps->begin;
  for (; column + 8 <= taps->end; column += 8) {
    const int32_t *places = taps->places + column;
    __m256i pairs = _mm256_cvtepu8_epi16(
        _mm_set_epi64x(load_four(row, places + 4), load_four(row, places)));
    __m256i weights = _mm256_loadu_si256((const void *)(taps->weights + 2 * column));
    __m256i found = _mm256_srai_epi32(_mm256_madd_epi16(pairs, weights), 4);
    _mm_storeu_si128((void *)(out + column), _mm_packs_epi32(_mm256_castsi256_si128(found),
                                                              _mm256_extracti128_si256(found, 1)));
  }
  return column;
}

#endif

/* Which rows of a ring hold the first pass's results. */
struct ring {
  uint8_t *bytes;
  size_t stride;
  int32_t rows;
  int64_t made; /* rows of the source below this one had the first pass, or are not needed */
};

static void *in_ring(const struct ring *ring, int64_t row) {
  return ring->bytes + (size_t)(row % ring->rows) * ring->stride;
}

/* First pass over two rows. */
static void cross_two(const struct taps *taps, const uint8_t *upper, const uint8_t *lower,
                      int16_t *out_upper, int16_t *out_lower) {
  int32_t begin = 0, end = 0;
#if HAS_AVX2_CODE
  if (use_avx2() && taps->channels != 2) {
    begin = taps->begin;
    end = taps->channels == 1 ? cross_gray(taps, upper, out_upper)
                              : cross_colours(taps, upper, lower, out_upper, out_lower);
    if (taps->channels == 1) cross_gray(taps, lower, out_lower);
  }
#endif
  cross(taps, 0, begin, upper, out_upper);
  cross(taps, 0, begin, lower, out_lower);
  cross(taps, end, taps->count, upper, out_upper);
  cross(taps, end, taps->count, lower, out_lower);
}

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

static void fill_two_tap(const struct picture *source, const struct line *down,
                         const struct axis *rows, const struct taps *taps, struct ring *ring,
                         const struct picture *out) {
  for (int32_t row = 0; row < rows->kept; row++) {
    struct neighbours found = neighbours_of(down, (int64_t)rows->window + row);
    if (ring->made < found.first) ring->made = found.first;
    while (ring->made <= found.second) {
      int64_t upper = ring->made, lower = upper + 1 < source->height ? upper + 1 : upper;
      cross_two(taps, row_of(source, upper), row_of(source, lower), in_ring(ring, upper),
                in_ring(ring, upper + 1));
      ring->made += 2;
    }
    blend(in_ring(ring, found.first), in_ring(ring, found.second), found.weights,
          taps->count * taps->channels, out->pixels + row * out->stride);
  }
}

static enum status resize_two_tap(const struct picture *source, const struct line *down,
                                  const struct line *across, const struct axis *rows,
                                  const struct axis *columns, int flip, const struct picture *out,
                                  struct buffer *scratch) {
  enum { RING = 4 };
  int64_t last_row = (int64_t)rows->window + rows->kept - 1;
  int64_t last_column = (int64_t)columns->window + columns->kept - 1;
  if (neighbours_of(down, last_row).second >= source->height ||
      neighbours_of(across, last_column).second >= source->width)
    return NOT_TAKEN;
  struct taps taps = {.count = columns->kept, .channels = source->channels};
  taps.step = across->size > 1 ? source->channels : 0;
  size_t pixels = (size_t)taps.count, values = pixels * (size_t)taps.channels;
  size_t for_places = padded(pixels * sizeof *taps.places);
  size_t for_weights = padded(2 * pixels * sizeof *taps.weights);
  struct ring ring = {.stride = padded(values * sizeof(int16_t)), .rows = RING};
  uint8_t *rest = buffer_take(scratch, for_places + for_weights + RING * ring.stride);
  if (rest == NULL) return NO_MEMORY;
  taps.places = part_of(&rest, for_places);
  taps.weights = part_of(&rest, for_weights);
  ring.bytes = part_of(&rest, RING * ring.stride);
  find_taps(across, columns, flip, source->width, &taps);
  fill_two_tap(source, down, rows, &taps, &ring, out);
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

/* Nearest pixels ------------------------------------------------------------------------------- */

enum { MOST_STEPS = 1 << 24 }; /* of a sum, which would take seconds */

/* Finds the pixels under the centres of a slot's. The sum is that of Axis.nearest. */
static void find_nearest(const struct axis *axis, int32_t *places) {
  double first = axis->offset / axis->shrink;
  double start = (double)axis->offset / axis->shrink - first;
  double scale = axis->length / ((double)axis->resized * axis->shrink);
  double place = start + scale / 2;
  for (int32_t step = 0; step < axis->window; step++) place += scale;
  for (int32_t at = 0; at < axis->kept; at++) {
    places[at] = (int32_t)place;
    place += scale;
  }
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

static void mirror(int32_t *places, int32_t count) {
  for (int32_t left = 0, right = count - 1; left < right; left++, right--) {
    int32_t kept = places[left];
    places[left] = places[right];
    places[right] = kept;
  }
}

enum status resize_nearest(const struct picture *source, const struct axis *rows,
                           const struct axis *columns, int flip, const struct picture *out,
                           struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, INT32_MAX) ||
      rows->window > MOST_STEPS || columns->window > MOST_STEPS)
    return NOT_TAKEN;
  size_t channels = (size_t)source->channels, bytes = (size_t)columns->kept * channels;
  size_t for_rows = padded((size_t)rows->kept * sizeof(int32_t));
  size_t for_columns = padded((size_t)columns->kept * sizeof(int32_t));
  uint8_t *rest = buffer_take(scratch, for_rows + for_columns);
  if (rest == NULL) return NO_MEMORY;
  int32_t *down = part_of(&rest, for_rows), *across = part_of(&rest, for_columns);
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
