/* Resize pictures with two taps, as OpenCV does (modules/imgproc/src/resize.simd.hpp), and to the
 * nearest pixel. See resample.h. */
#include "resample.h"

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
                          int precise, int32_t count, uint8_t *restrict out) {
  int16_t near = weights[0], far = weights[1];
  for (int32_t at = 0; at < count; at++) {
    if (precise) {
      out[at] = (uint8_t)((first[at] * near + second[at] * far + (1 << 17)) >> 18);
    } else {
      int16_t upper = (int16_t)((first[at] * near) >> 16);
      int16_t lower = (int16_t)((second[at] * far) >> 16);
      out[at] = (uint8_t)((int16_t)(upper + lower + 2) >> 2);
    }
  }
}

/* Weights two rows that had the first pass: precisely, or as OpenCV's resize does. */
INLINE void blend_either(const int16_t *first, const int16_t *second, const int16_t *weights,
                         int precise, int32_t count, uint8_t *out) {
  if (precise)
    blend_plainly(first, second, weights, 1, count, out);
  else
    blend_plainly(first, second, weights, 0, count, out);
}

#if HAS_AVX2_CODE
AVX2 static void blend_avx2(const int16_t *first, const int16_t *second, const int16_t *weights,
                            int precise, int32_t count, uint8_t *out) {
  blend_either(first, second, weights, precise, count, out);
}
#endif

static void blend(const int16_t *first, const int16_t *second, const int16_t *weights, int precise,
                  int32_t count, uint8_t *out) {
#if HAS_AVX2_CODE
  if (use_avx2()) {
    blend_avx2(first, second, weights, precise, count, out);
    return;
  }
#endif
  blend_either(first, second, weights, precise, count, out);
}

static enum status resize_two_tap(const struct picture *source, const struct line *down,
                                  const struct line *across, const struct axis *rows,
                                  const struct axis *columns, int flip, int precise,
                                  const struct picture *out, struct buffer *scratch) {
  int64_t last_row = (int64_t)rows->window + rows->kept - 1;
  int64_t last_column = (int64_t)columns->window + columns->kept - 1;
  if (neighbours_of(down, last_row).second >= source->height ||
      neighbours_of(across, last_column).second >= source->width)
    return NOT_TAKEN;
  int32_t values = columns->kept * source->channels;
  struct taps taps = {.count = columns->kept, .most = 2, .stride = 2, .shift = 4};
  if (precise) taps.half = 8;
  if (across->size < 2 || source->width < 2) taps.most = 1;
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
          found.weights, precise, values,
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
  return resize_two_tap(source, &down, &across, rows, columns, flip, 0, out, scratch);
}

/* OpenCV computes in float what is computed in whole numbers here, to one level the same. */
enum status resize_shrunk(const struct picture *source, const struct axis *rows,
                          const struct axis *columns, int flip, const struct picture *out,
                          struct buffer *scratch) {
  if (!are_sound(source, rows, columns, out, MOST_CHANNELS)) return NOT_TAKEN;
  struct line down = shrunk_line(rows, source->height);
  struct line across = shrunk_line(columns, source->width);
  return resize_two_tap(source, &down, &across, rows, columns, flip, 1, out, scratch);
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
