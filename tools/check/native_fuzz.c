/* Fuzz targets of the native core, for libFuzzer or for the small driver at the end.
 *
 * FUZZ_TARGET, of the environment, names the one that gets the bytes of an input. An input begins with bytes that choose
 * the arguments, of which tools/check/native_fuzz.py knows how many; a file follows. All memory has
 * exactly the size that the core may use, so that AddressSanitizer sees what is read or written
 * beside it. Arguments are such as shardio's Python code may pass.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "core.h"
#include "resample.h"

enum { MOST_PIXELS = 1 << 20, LONGEST_SIDE = 300 };

struct input {
  const uint8_t *bytes;
  size_t left;
};

static uint32_t next(struct input *input, int bytes) {
  uint32_t value = 0;
  for (; bytes > 0 && input->left > 0; bytes--, input->left--) value = value << 8 | *input->bytes++;
  return value;
}

static int32_t number(struct input *input, int32_t least, int32_t most) {
  return least + (int32_t)(next(input, 2) % (uint32_t)(most - least + 1));
}

static void *room(size_t size) {
  void *made = malloc(size ? size : 1);
  if (made == NULL) abort();
  return memset(made, 0, size);
}

/* The bytes in memory of their own, where a byte too far is noticed. */
static uint8_t *copied(const uint8_t *bytes, size_t size) {
  uint8_t *made = room(size);
  return size ? memcpy(made, bytes, size) : made;
}

static void look_at(const struct picture *picture) {
  uint32_t sum = 0;
  for (int32_t row = 0; row < picture->height; row++)
    sum = shardio_crc32(sum, picture->pixels + row * picture->stride,
                   (size_t)picture->width * (size_t)picture->channels);
  if (sum == 1) fputs("", stderr);
}

static void fuzz_exif(struct input input) {
  uint8_t *data = copied(input.bytes, input.left);
  exif_orientation(data, input.left);
  free(data);
}

static void fuzz_jpeg(struct input input) {
  int32_t sides[4];
  struct jpeg_region region = {.shrink = 1 << number(&input, 0, 3),
                               .channels = number(&input, 0, 1) ? 3 : 1,
                               .to_end = number(&input, 0, 1)};
  for (int each = 0; each < 4; each++) sides[each] = (int32_t)next(&input, 2);
  struct jpeg *jpeg = jpeg_new();
  struct jpeg_header header;
  struct buffer buffer = {0};
  struct picture out;
  uint8_t *data = copied(input.bytes, input.left);
  if (jpeg_probe(data, input.left, &header) == DONE && header.scans < 20 &&
      (int64_t)header.height * header.width <= MOST_PIXELS) {
    region.top = sides[0] % header.height;
    region.left = sides[1] % header.width;
    region.bottom = region.top + 1 + sides[2] % (header.height - region.top);
    region.right = region.left + 1 + sides[3] % (header.width - region.left);
    for (int twice = 0; twice < 2; twice++) /* as a decoder is used again */
      if (jpeg_pixels(jpeg, data, input.left, &header, &region, &out, &buffer) == DONE &&
          region.shrink == 1)
        look_at(&out);
  }
  jpeg_free(jpeg);
  buffer_free(&buffer);
  free(data);
}

static void put(uint8_t *bytes, uint32_t value) {
  for (int each = 0; each < 4; each++) bytes[each] = (uint8_t)(value >> (24 - 8 * each));
}

/* Gives the chunks of a PNG the checksums that they should have. */
static void mend_checksums(uint8_t *data, size_t size) {
  for (size_t at = 8; size - at >= 12;) {
    struct input length = {data + at, 4};
    size_t bytes = next(&length, 4);
    if (bytes > size - at - 12) return;
    put(data + at + 8 + bytes, (uint32_t)crc32(0, data + at + 4, (uInt)bytes + 4));
    at += bytes + 12;
    if (at > size) return;
  }
}

/* zlib's inflate into memory of one size, of which it tells how much was read and written; whether
 * the stream is sound and fills the memory. */
static int zlib_inflates(const uint8_t *packed, size_t *packed_size, uint8_t *out, size_t *size,
                         int window_bits) {
  z_stream stream = {.next_in = (uint8_t *)packed, .avail_in = (uInt)*packed_size};
  if (inflateInit2(&stream, window_bits) != Z_OK) abort();
  stream.next_out = out;
  stream.avail_out = (uInt)*size;
  int is_whole = inflate(&stream, Z_FINISH) == Z_STREAM_END, is_full = stream.avail_out == 0;
  if (is_whole) {
    *packed_size = stream.total_in;
    *size = stream.total_out;
  }
  inflateEnd(&stream);
  return is_whole && is_full;
}

/* Both must take the same streams, and make the same of them. Most inputs are put into a frame with
 * the checksum of what the core makes of them, so that a code which it takes in error is seen. */
static void fuzz_inflate(struct input input) {
  int is_framed = number(&input, 0, 3) > 0;
  size_t size = next(&input, 2), packed_size = input.left;
  uint8_t *packed = copied(input.bytes, packed_size), *expected = room(size), *found = room(size);
  if (is_framed) {
    zlib_inflates(packed, &packed_size, expected, &size, -MAX_WBITS);
    free(packed);
    packed = room(packed_size + 6);
    put(packed, 0x789C0000);
    if (packed_size) memcpy(packed + 2, input.bytes, packed_size);
    packed_size += 6;
    free(found);
    found = room(size);
    inflate_exactly(packed, packed_size, found, size);
    put(packed + packed_size - 4, (uint32_t)adler32(adler32(0, NULL, 0), found, (uInt)size));
  }
  size_t read = packed_size, written = size;
  int is_sound = zlib_inflates(packed, &read, expected, &written, MAX_WBITS);
  if ((inflate_exactly(packed, packed_size, found, size) == DONE) != is_sound) abort();
  if (is_sound && memcmp(found, expected, size) != 0) abort();
  free(packed);
  free(expected);
  free(found);
}

static uint8_t *add_chunk(uint8_t *to, const char *kind, const uint8_t *data, size_t size) {
  put(to, (uint32_t)size);
  memcpy(to + 4, kind, 4);
  memcpy(to + 8, data, size);
  put(to + 8 + size, (uint32_t)crc32(0, to + 4, (uInt)size + 4));
  return to + 12 + size;
}

/* Makes a PNG whose rows are the input, of the size that IHDR says. */
static uint8_t *made_png(struct input input, size_t *size) {
  static const uint8_t colours[] = {0, 2, 3, 4, 6};
  uint8_t header[13] = {0};
  int32_t colour = colours[number(&input, 0, 4)], bits = 1 << number(&input, 0, 3);
  int32_t width = number(&input, 1, 90), palette = number(&input, 1, 256);
  header[3] = (uint8_t)width;
  header[8] = (uint8_t)bits;
  header[9] = (uint8_t)colour;
  int channels = colour == 2 ? 3 : colour == 4 ? 2 : colour == 6 ? 4 : 1;
  size_t row = 1 + ((size_t)width * (size_t)(channels * bits) + 7) / 8;
  size_t height = input.left / row < 1 ? 1 : input.left / row > 99 ? 99 : input.left / row;
  header[7] = (uint8_t)height;
  uint8_t *rows = room(height * row), *colour_table = room(768);
  memcpy(rows, input.bytes, input.left < height * row ? input.left : height * row);
  uLongf packed = compressBound((uLong)(height * row));
  uint8_t *data = room(packed), *made = room(8 + 4 * 12 + 13 + 768 + packed), *end = made + 8;
  compress2(data, &packed, rows, (uLong)(height * row), 1);
  memcpy(made, "\x89PNG\r\n\x1a\n", 8);
  end = add_chunk(end, "IHDR", header, 13);
  if (colour == 3) end = add_chunk(end, "PLTE", colour_table, 3 * (size_t)palette);
  end = add_chunk(end, "IDAT", data, packed);
  end = add_chunk(end, "IEND", data, 0);
  *size = (size_t)(end - made);
  free(rows);
  free(colour_table);
  free(data);
  return made;
}

static void fuzz_png(struct input input) {
  static const int channels[] = {0, 1, 3, 4}; /* 0 for values */
  int kind = channels[number(&input, 0, 3)], way = number(&input, 0, 2);
  size_t size = input.left;
  uint8_t *whole = way == 2 ? made_png(input, &size) : copied(input.bytes, size);
  uint8_t *data = copied(whole, size);
  free(whole);
  if (way == 1 && size > 8) mend_checksums(data, size);
  struct png png;
  struct buffer scratch = {0};
  if (png_probe(data, size, &png) == DONE && (int64_t)png.height * png.width <= MOST_PIXELS) {
    size_t stride = (size_t)png.width * (size_t)(kind ? kind : 1);
    uint8_t *out = room(stride * (size_t)png.height);
    if (kind)
      png_pixels(data, size, &png, kind, out, (ptrdiff_t)stride, &scratch);
    else
      png_values(data, size, &png, out, (ptrdiff_t)stride, &scratch);
    free(out);
  }
  buffer_free(&scratch);
  free(data);
}

/* An axis such as Python makes, or one of any numbers. */
static struct axis made_axis(struct input *input, int32_t kept, int32_t shrink, int is_odd) {
  struct axis axis = {number(input, 0, 300), number(input, 1, 300), number(input, 1, 600),
                      number(input, 0, 600), kept,                  shrink};
  if (is_odd) {
    axis.offset = (int32_t)next(input, 4);
    axis.length = (int32_t)next(input, 4);
    axis.resized = (int32_t)next(input, 4);
    axis.window = (int32_t)next(input, 4);
    axis.kept = (int32_t)next(input, 4);
  } else if (axis.window > axis.resized - kept) {
    axis.resized += kept;
    axis.window %= axis.resized - kept + 1;
  }
  return axis;
}

static void fuzz_resize(struct input input) {
  int method = number(&input, 0, 4), flip = number(&input, 0, 1), odd = number(&input, 0, 7) == 0;
  int32_t shrink = method == 1 ? 1 << number(&input, 0, 3) : 1;
  int32_t channels = number(&input, 1, 4);
  int32_t height = number(&input, 1, 80), width = number(&input, 1, 200);
  struct axis rows = made_axis(&input, height, shrink, odd);
  struct axis columns = made_axis(&input, width, shrink, odd);
  struct picture source = {NULL, 0, number(&input, 1, LONGEST_SIDE),
                           number(&input, 1, LONGEST_SIDE), channels};
  if (!odd && shrink == 1 && number(&input, 0, 3)) { /* most often there is what is needed */
    source.height = rows.length;
    source.width = columns.length;
  }
  struct picture out = {NULL, (ptrdiff_t)width * channels, height, width, channels};
  source.stride = (ptrdiff_t)source.width * channels;
  size_t size = (size_t)source.stride * (size_t)source.height;
  source.pixels = room(size);
  for (size_t at = 0; at < size; at++)
    source.pixels[at] = input.left ? input.bytes[at % input.left] : (uint8_t)(at * 7);
  out.pixels = room((size_t)out.stride * (size_t)height);
  struct buffer scratch = {0};
  if (method == 0)
    resize_linear(&source, &rows, &columns, flip, &out, &scratch);
  else if (method == 1)
    resize_shrunk(&source, &rows, &columns, flip, &out, &scratch);
  else if (method == 4)
    resize_nearest(&source, &rows, &columns, flip, &out, &scratch);
  else
    resize_antialiased(&source, &rows, &columns, method == 3, flip, &out, &scratch);
  buffer_free(&scratch);
  free(source.pixels);
  free(out.pixels);
}

enum { FIELDS = 3, SAMPLES = 2, ROLES = 2 };

static struct field made_field(struct input *input, uint8_t **prefix) {
  static const int32_t channels[] = {1, 3, 4};
  struct field field = {.kind = number(input, 0, 4), .role = number(input, 0, ROLES - 1)};
  field.max_pixels = number(input, 0, 9) ? MOST_PIXELS : 100;
  field.leads = number(input, 0, 1);
  field.channels = field.kind == PICTURE ? channels[number(input, 0, 2)] : 1;
  field.height = number(input, 1, 40);
  field.width = number(input, 1, 70);
  field.stride = (int64_t)field.height * field.width * field.channels;
  if (field.kind == NUMBER) field.stride = sizeof(int64_t);
  field.prefix_size = field.kind == ROW ? number(input, 0, 4) : 0;
  field.prefix = *prefix = copied(input->bytes, (size_t)field.prefix_size < input->left
                                                    ? (size_t)field.prefix_size
                                                    : 0);
  if ((size_t)field.prefix_size > input->left) field.prefix_size = 0;
  field.out = room((size_t)field.stride * SAMPLES);
  return field;
}

/* A view such as Python makes for a picture that it believes to have a size. */
static struct view made_view(struct input *input, const int32_t *size, const struct field *field) {
  struct view view = {.height = size[0], .width = size[1], .orientation = size[2]};
  view.top = number(input, -1, view.height);
  view.left = number(input, -1, view.width);
  view.crop_height = number(input, 0, view.height - view.top);
  view.crop_width = number(input, 0, view.width - view.left);
  view.place_height = number(input, 1, field->height);
  view.place_width = number(input, 1, field->width);
  view.place_top = number(input, 0, field->height - view.place_height);
  view.place_left = number(input, 0, field->width - view.place_width);
  view.resized_height = view.place_height + number(input, 0, 50);
  view.resized_width = view.place_width + number(input, 0, 50);
  view.window_top = number(input, 0, view.resized_height - view.place_height);
  view.window_left = number(input, 0, view.resized_width - view.place_width);
  if (!number(input, 0, 3)) { /* copied */
    view.resized_height = view.crop_height;
    view.resized_width = view.crop_width;
  }
  view.flip = number(input, 0, 1);
  view.method = number(input, 0, 3);
  view.shrink = view.method == LINEAR ? 1 << number(input, 0, 3) : 1;
  return view;
}

static void fuzz_fill(struct input input) {
  struct samples all = {.length = SAMPLES, .num_fields = number(&input, 1, FIELDS)};
  enum { CELLS = FIELDS * SAMPLES };
  int64_t firsts[CELLS], offsets[CELLS], sizes[CELLS];
  struct totals totals = {0};
  uint32_t checksums[CELLS], headers[CELLS];
  uint8_t status[SAMPLES] = {DONE, DONE}, *prefixes[FIELDS];
  int32_t files[SAMPLES], found[SAMPLES * 3];
  struct view views[ROLES * SAMPLES] = {{0}};
  struct field fields[FIELDS];
  int64_t cells = all.num_fields * SAMPLES;
  for (int64_t each = 0; each < all.num_fields; each++)
    fields[each] = made_field(&input, &prefixes[each]);
  int has_sums = number(&input, 0, 1), has_headers = number(&input, 0, 1);
  struct input places = input, choices; /* of the members, before and behind what is the file */
  size_t taken = (size_t)cells * 8 + 120;
  input.bytes += taken < input.left ? taken : input.left;
  input.left -= taken < input.left ? taken : input.left;
  int64_t length = (int64_t)input.left;
  for (int64_t cell = 0; cell < cells; cell++) {
    firsts[cell] = next(&places, 2) % (length + 1);
    offsets[cell] = firsts[cell] + next(&places, 1) % 64;
    sizes[cell] = number(&places, 0, 9) ? length - offsets[cell] : (int64_t)next(&places, 2);
    if (number(&places, 0, 99) == 7) sizes[cell] = -(int64_t)next(&places, 4);
    int is_inside = sizes[cell] > 0 && offsets[cell] + sizes[cell] <= length;
    checksums[cell] =
        is_inside ? (uint32_t)crc32(0, input.bytes + offsets[cell], (uInt)sizes[cell]) : 0;
    headers[cell] = is_inside ? (uint32_t)crc32(0, input.bytes + firsts[cell],
                                                (uInt)(offsets[cell] - firsts[cell]))
                              : 0;
  }
  int file = memfd_create("fuzz", 0);
  if (file < 0 || write(file, input.bytes, input.left) != (ssize_t)input.left) abort();
  for (int64_t each = 0; each < SAMPLES; each++) files[each] = file;
  all.files = files;
  all.firsts = firsts;
  all.offsets = offsets;
  all.sizes = sizes;
  all.checksums = has_sums ? checksums : NULL;
  all.headers = has_headers ? headers : NULL;
  all.views = views;
  all.fields = fields;
  all.status = status;
  struct worker *worker = shardio_worker_new();
  choices = places;
  for (int64_t field = 0; field < all.num_fields; field++) {
    shardio_probe(worker, &all, field, 0, SAMPLES, found);
    for (int64_t each = 0; each < SAMPLES; each++)
      if (found[3 * each])
        views[fields[field].role * SAMPLES + each] =
            made_view(&choices, found + 3 * each, &fields[field]);
  }
  shardio_fill(worker, &all, 0, SAMPLES, &totals);
  shardio_worker_free(worker);
  for (int64_t field = 0; field < all.num_fields; field++) {
    free(fields[field].out);
    free(prefixes[field]);
  }
  close(file);
}

/* Tells whether libjpeg decodes a picture without a warning, but for one of an unknown version of
 * JFIF, which harms no pixel; or it is too large to try. */
static int decodes(uint8_t *data, size_t size) {
  struct jpeg_header header;
  if (jpeg_probe(data, size, &header) != DONE) return 0;
  for (size_t at = 2; data[at + 1] != 0xDA; at += 2 + (size_t)(data[at + 2] << 8 | data[at + 3]))
    if (data[at + 1] == 0xE0 && size - at > 9 && memcmp(data + at + 4, "JFIF", 5) == 0)
      data[at + 9] = 1;
  if ((int64_t)header.height * header.width > MOST_PIXELS) return 1;
  struct jpeg_region region = {.bottom = header.height, .right = header.width, .shrink = 1,
                               .channels = 3, .to_end = 1};
  struct jpeg *jpeg = jpeg_new();
  struct buffer buffer = {0};
  struct picture out;
  enum status status = jpeg_pixels(jpeg, data, size, &header, &region, &out, &buffer);
  jpeg_free(jpeg);
  buffer_free(&buffer);
  return status == DONE;
}

/* Files that packing checks together: the answers are those that they have alone, and what is sound
 * decodes. */
static void fuzz_pack(struct input input) {
  enum { FILES = 4 };
  uint8_t *files[FILES], sound[FILES], alone;
  size_t sizes[FILES], count = (size_t)number(&input, 1, FILES);
  for (size_t each = 0; each < count; each++) {
    sizes[each] = each + 1 == count ? 0 : next(&input, 2) % (input.left + 1);
    if (sizes[each] > input.left || each + 1 == count) sizes[each] = input.left;
    files[each] = copied(input.bytes, sizes[each]);
    input.bytes += sizes[each];
    input.left -= sizes[each];
  }
  static struct checker *checker; /* to be made anew takes longer than all else */
  if (checker == NULL) checker = shardio_checker_new();
  shardio_jpegs_are_sound(checker, (int64_t)count, (const uint8_t *const *)files, sizes, sound);
  for (size_t each = 0; each < count; each++) {
    const uint8_t *file = files[each];
    shardio_jpegs_are_sound(checker, 1, &file, &sizes[each], &alone);
    if (alone != sound[each] || (alone && !decodes(file, sizes[each]))) abort();
  }
  for (size_t each = 0; each < count; each++) free(files[each]);
}

static const struct {
  const char *name;
  void (*run)(struct input);
} targets[] = {{"exif", fuzz_exif},
               {"jpeg", fuzz_jpeg},
               {"png", fuzz_png},
               {"resize", fuzz_resize},
               {"fill", fuzz_fill},
               {"pack", fuzz_pack},
               {"inflate", fuzz_inflate}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static void (*chosen)(struct input);
  const char *name = getenv("FUZZ_TARGET");
  for (size_t each = 0; !chosen && name && each < sizeof targets / sizeof *targets; each++)
    if (strcmp(name, targets[each].name) == 0) chosen = targets[each].run;
  if (!chosen) abort();
  chosen((struct input){data, size});
  return 0;
}

#ifdef WITH_DRIVER
/* Without libFuzzer: run each file that is named, then, for some seconds, changed ones at random. */
#include <time.h>

static uint64_t state = 1;

static uint32_t drawn(uint32_t below) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(state >> 33) % below;
}

int main(int count, char **arguments) {
  enum { LONGEST_FILE = 1 << 16, MOST_FILES = 4096 };
  static uint8_t *files[MOST_FILES], changed[LONGEST_FILE];
  static size_t sizes[MOST_FILES];
  uint32_t read = 0;
  uint64_t runs = 0;
  time_t end = time(NULL) + atoi(arguments[1]);
  for (int each = 2; each < count && read < MOST_FILES; each++) {
    FILE *file = fopen(arguments[each], "rb");
    if (file == NULL) return 1;
    files[read] = room(LONGEST_FILE);
    sizes[read] = fread(files[read], 1, LONGEST_FILE, file);
    fclose(file);
    LLVMFuzzerTestOneInput(files[read], sizes[read]);
    read++;
    runs++;
  }
  for (; read > 0 && time(NULL) < end; runs++) {
    uint32_t which = drawn(read);
    size_t size = sizes[which];
    memcpy(changed, files[which], size);
    for (uint32_t times = 1 + drawn(8); times > 0 && size > 0; times--) {
      size_t at = drawn(drawn(2) ? 40 : (uint32_t)size) % size;
      changed[at] = drawn(3) ? (uint8_t)drawn(256) : drawn(2) ? 0xFF : 0;
      if (!drawn(20)) size = at + 1;
    }
    LLVMFuzzerTestOneInput(changed, size);
  }
  printf("Done %llu runs\n", (unsigned long long)runs);
  return 0;
}
#endif
