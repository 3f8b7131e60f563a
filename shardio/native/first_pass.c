/* The first pass of resizing: weighted sums of the pixels of a row. See resample.h. */
#include "resample.h"

/* Rows that take the first pass together, and where the results go. */
struct rows {
  const uint8_t *from[NARROW_ROWS];
  uint8_t *to[NARROW_ROWS];
};

/* Finds begin and end for rows of `width` pixels. AVX2 code loads eight gray pixels at once, or the
 * 16 bytes that hold four of several channels; but pairs of gray pixels one by one. */
void find_loadable(struct taps *taps, int32_t width, int32_t channels, int wide) {
  int32_t bytes = channels > 1 ? (rounded_up(taps->most, 4) - 4) * channels + 16
                  : wide       ? 2
                               : rounded_up(taps->most, 8);
  int32_t spare = width * channels - bytes, last = spare < 0 ? -1 : spare / channels;
  taps->begin = 0;
  while (taps->begin < taps->count && taps->places[taps->begin] > last) taps->begin++;
  taps->end = taps->count;
  while (taps->end > taps->begin && taps->places[taps->end - 1] > last) taps->end--;
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

AVX2 INLINE __m256i twice(__m128i half) { return _mm256_broadcastsi128_si256(half); }

AVX2 INLINE __m256i two_rows(const uint8_t *upper, const uint8_t *lower) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(upper)), load_16(lower), 1);
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
  if (wide) taps.most = taps.stride = 2, taps.shift = 4; /* tells the compiler */
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
    __m256i sums = _mm256_madd_epi16(pairs, weights);
    sums = _mm256_srai_epi32(_mm256_add_epi32(sums, _mm256_set1_epi32(taps.half)), 4);
    __m128i left = _mm256_castsi256_si128(sums), right = _mm256_extracti128_si256(sums, 1);
    _mm_storeu_si128((void *)(out + 2 * column), _mm_packs_epi32(left, right));
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

/* Has the rows from first to end take the first pass, and a few more. */
void make_rows(struct ring *ring, const struct picture *source, const struct taps *across,
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
      cross(across, channels, ring->wide, 0, across->begin, rows.from[row], rows.to[row]);
      cross(across, channels, ring->wide, done, across->count, rows.from[row], rows.to[row]);
    }
  }
}
