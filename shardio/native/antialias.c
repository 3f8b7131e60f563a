/* Resize pictures with antialiasing, as torch's kernel for bytes does
 * (aten/src/ATen/native/cpu/UpSampleKernelAVXAntialias.h, after Pillow-SIMD). See resample.h. */
#include "resample.h"

enum {
  MOST_PRECISION = 22,
  TAPS_AT_ONCE = 8,
  AROUND = 4096,    /* the same as _AROUND and _MOST_COMPUTED of shardio/fields/resample.py */
  MOST_COMPUTED = 4,
  MOST_SCRATCH = 1 << 28, /* bytes */
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

/* Computes the weights of one pixel of the slot; returns how many, 0 if they say nothing. */
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
  return total > 0 ? count : 0;
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
                        const int16_t *weights, int32_t count, uint8_t *out) {
  for (int32_t at = 0; at < count; at++) {
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
  mix_plainly(lines, taps, weights, count, out);
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
  int64_t computed =
      ((int64_t)rows->window + rows->kept) * ((int64_t)columns->window + columns->kept);
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
  if (total + for_exact > MOST_SCRATCH) return NOT_TAKEN;
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
