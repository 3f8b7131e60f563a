/* The entry points: read, verify and decode a chunk of samples into their slots.
 *
 * A sample is read with one call where its members lie side by side, and its bytes are held against
 * the index before anything is made of them: against the checksums of the data or, where these are
 * not known, those of the headers. Of a picture the region that its crop needs is decoded, turned by
 * its orientation, and resized into the slot.
 */
#define _POSIX_C_SOURCE 200809L
#include "core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
  MOST_FIELDS = 32,
  GAP = 2048,          /* bytes between members that are read along */
  MOST_READ = 1 << 27, /* bytes of a sample */
  MOST_KEPT = 1 << 26, /* bytes of a buffer between samples */
  FREE_PIXELS = 1 << 24,
  PIXELS_A_BYTE = 1024,
  MOST_SCANS = 100,
  MOST_DIGITS = 18, /* that always fit into int64_t */
};
static const int64_t MOST_SCANNED = (int64_t)12 * 178956970; /* pixels of all scans, see limits.py */

struct worker {
  struct jpeg *jpeg;
  struct buffer file, pixels, turned, scratch;
};

struct worker *shardio_worker_new(void) {
  struct worker *worker = calloc(1, sizeof *worker);
  if (worker == NULL) return NULL;
  worker->jpeg = jpeg_new();
  if (worker->jpeg == NULL) {
    free(worker);
    return NULL;
  }
  return worker;
}

void shardio_worker_free(struct worker *worker) {
  if (worker == NULL) return;
  jpeg_free(worker->jpeg);
  buffer_free(&worker->file);
  buffer_free(&worker->pixels);
  buffer_free(&worker->turned);
  buffer_free(&worker->scratch);
  free(worker);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static enum status read_at(int file, uint8_t *out, int64_t size, int64_t offset) {
  while (size > 0) {
    ssize_t done = pread(file, out, (size_t)size, (off_t)offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return UNSOUND;
    out += done;
    offset += done;
    size -= done;
  }
  return DONE;
}

/* Where the bytes of a member begin in the file, and where they are in memory. */
struct member {
  int64_t start;
  const uint8_t *bytes;
};

/* Bytes of a sample from its first header or data to the end of its last data, if its members lie
 * side by side; of the members alone if they lie apart; -1 if the core does not read it. */
static int64_t room_of(const struct samples *all, int64_t index, int64_t *start) {
  int64_t first = INT64_MAX, end = 0, useful = 0;
  for (int64_t field = 0; field < all->num_fields; field++) {
    int64_t cell = field * all->length + index;
    int64_t begin = all->firsts[cell], offset = all->offsets[cell], size = all->sizes[cell];
    if (begin < 0 || begin > offset || size < 0 || size > MOST_READ || offset - begin > MOST_READ)
      return -1;
    first = begin < first ? begin : first;
    end = offset + size > end ? offset + size : end;
    useful += offset + size - begin;
  }
  int together = end - first <= useful + GAP * all->num_fields;
  *start = together ? first : -1;
  int64_t room = together ? end - first : useful;
  return room <= MOST_READ ? room : -1;
}

/* Holds the bytes of a member against the index. */
static enum status verify(const struct samples *all, int64_t cell, struct member member,
                          int foremost, int file, uint8_t *again) {
  int64_t first = all->firsts[cell], offset = all->offsets[cell];
  if (all->headers != NULL) {
    int64_t size = offset - first;
    const uint8_t *header = member.bytes + (first - member.start);
    /* Whoever overwrites a shard while it is read meets the foremost header first. */
    if (foremost) {
      if (read_at(file, again, size, first) != DONE) return UNSOUND;
      header = again;
    }
    if (shardio_crc32(0, header, (size_t)size) != all->headers[cell]) return UNSOUND;
  }
  const uint8_t *data = member.bytes + (offset - member.start);
  if (all->checksums != NULL &&
      shardio_crc32(0, data, (size_t)all->sizes[cell]) != all->checksums[cell])
    return UNSOUND;
  return DONE;
}

/* Reads a sample, with one call if its members lie side by side, and verifies it. */
static enum status read_sample(struct worker *worker, const struct samples *all, int64_t index,
                               struct member members[MOST_FIELDS]) {
  int64_t start, room = room_of(all, index, &start);
  if (room < 0) return NOT_TAKEN;
  uint8_t *bytes = buffer_take(&worker->file, 2 * (size_t)room); /* and to read a header anew */
  if (bytes == NULL) return NO_MEMORY;
  int file = all->files[index];
  if (start >= 0 && read_at(file, bytes, room, start) != DONE) return UNSOUND;
  uint8_t *place = bytes;
  for (int64_t field = 0; field < all->num_fields; field++) {
    int64_t cell = field * all->length + index, first = all->firsts[cell];
    struct member member = {start, bytes};
    if (start < 0) {
      int64_t size = all->offsets[cell] + all->sizes[cell] - first;
      if (read_at(file, place, size, first) != DONE) return UNSOUND;
      member.start = first;
      member.bytes = place;
      place += size;
    }
    enum status status = verify(all, cell, member, first == start, file, bytes + room);
    if (status != DONE) return status;
    members[field] = member;
  }
  return DONE;
}

/* Height and width of a picture as shown are those that the view was chosen for, and so is its
 * orientation where the view has it of this picture. */
static int is_as_known(const struct view *view, const struct field *field, int32_t height,
                       int32_t width, int32_t orientation) {
  int turned = orientation >= 5;
  return (turned ? width : height) == view->height && (turned ? height : width) == view->width &&
         (!field->leads || orientation == view->orientation);
}

/* A transform of the user may choose anything. */
static int is_sound(const struct view *view, const struct field *field) {
  return view->height > 0 && view->width > 0 && view->top >= 0 && view->left >= 0 &&
         view->crop_height > 0 && view->crop_height <= view->height - view->top &&
         view->crop_width > 0 && view->crop_width <= view->width - view->left &&
         view->place_top >= 0 && view->place_left >= 0 && view->place_height > 0 &&
         view->place_height <= field->height - view->place_top && view->place_width > 0 &&
         view->place_width <= field->width - view->place_left && view->window_top >= 0 &&
         view->window_left >= 0 && view->place_height <= view->resized_height - view->window_top &&
         view->place_width <= view->resized_width - view->window_left;
}

static int is_within_limits(const struct field *field, int64_t height, int64_t width, size_t size,
                            size_t scans) {
  int64_t pixels = height * width, least = pixels > FREE_PIXELS ? pixels : FREE_PIXELS;
  if (pixels > field->max_pixels) return 0;
  if (pixels > FREE_PIXELS && pixels > FREE_PIXELS + PIXELS_A_BYTE * (int64_t)size) return 0;
  return scans <= 1 || (scans <= MOST_SCANS && (int64_t)scans * least <= MOST_SCANNED);
}

/* Rows and columns of a picture. */
struct box {
  int32_t top, left, bottom, right;
};

static int32_t needed(int32_t start, int32_t length, int32_t resized, int32_t window, int32_t kept,
                      int support) {
  double scale = (double)length / resized;
  double reach = (window + kept - 0.5) * scale + support * (scale > 1 ? scale : 1) + 0.5;
  return start + (reach < length ? (int32_t)reach : length);
}

/* What a slot needs of a picture as shown. */
static struct box needed_box(const struct view *view) {
  struct box box = {view->top, view->left, view->top + view->crop_height,
                    view->left + view->crop_width};
  if (view->method == ANTIALIASED || view->method == CUBIC_ANTIALIASED || view->method == NEAREST) {
    int support = view->method == CUBIC_ANTIALIASED ? 2 : 1;
    box.bottom = needed(view->top, view->crop_height, view->resized_height, view->window_top,
                        view->place_height, support);
    box.right = needed(view->left, view->crop_width, view->resized_width, view->window_left,
                       view->place_width, support);
  }
  return box;
}

/* The same rows and columns in the picture as it is stored; exif.py's place_as_stored. */
static struct box as_stored(struct box box, int32_t orientation, int32_t height, int32_t width) {
  struct box found = box;
  if (orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8) {
    found.top = height - box.bottom;
    found.bottom = height - box.top;
  }
  if (orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7) {
    found.left = width - box.right;
    found.right = width - box.left;
  }
  if (orientation >= 5) {
    struct box turned = {found.left, found.top, found.right, found.bottom};
    return turned;
  }
  return found;
}

/* Turns a picture from how it is stored to how it is shown; exif.py's apply_orientation. */
static enum status turn(struct picture *picture, int32_t orientation, struct buffer *buffer) {
  int turned = orientation >= 5;
  int32_t height = turned ? picture->width : picture->height;
  int32_t width = turned ? picture->height : picture->width;
  int32_t channels = picture->channels;
  ptrdiff_t down = turned ? channels : picture->stride;
  ptrdiff_t across = turned ? picture->stride : channels;
  const uint8_t *origin = picture->pixels;
  if (orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8) {
    origin += (height - 1) * down;
    down = -down;
  }
  if (orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7) {
    origin += (width - 1) * across;
    across = -across;
  }
  uint8_t *out = buffer_take(buffer, (size_t)height * (size_t)width * (size_t)channels);
  if (out == NULL) return NO_MEMORY;
  picture->pixels = out;
  for (int32_t row = 0; row < height; row++, origin += down) {
    const uint8_t *from = origin;
    for (int32_t column = 0; column < width; column++, from += across)
      for (int32_t channel = 0; channel < channels; channel++) *out++ = from[channel];
  }
  picture->stride = (ptrdiff_t)width * channels;
  picture->height = height;
  picture->width = width;
  return DONE;
}

/* Copies pixels one to one, mirrored if the view says so. */
static void copy_pixels(const struct picture *source, const struct view *view,
                        const struct picture *out) {
  int32_t channels = out->channels;
  for (int32_t row = 0; row < out->height; row++) {
    const uint8_t *from = source->pixels + (view->window_top + row) * source->stride +
                          (ptrdiff_t)view->window_left * channels;
    uint8_t *to = out->pixels + row * out->stride;
    if (!view->flip) {
      memcpy(to, from, (size_t)out->width * (size_t)channels);
      continue;
    }
    for (int32_t column = out->width - 1; column >= 0; column--)
      for (int32_t channel = 0; channel < channels; channel++)
        *to++ = from[(ptrdiff_t)column * channels + channel];
  }
}

/* Resizes an upright picture into a part of a slot. At shrink 1 the picture begins at the crop's
 * first row and column; at another it is whole. */
static enum status resize(struct worker *worker, const struct picture *source,
                          const struct view *view, enum method method, int32_t shrink,
                          const struct picture *out) {
  struct axis rows = {view->top,        view->crop_height,  view->resized_height,
                      view->window_top, view->place_height, shrink};
  struct axis columns = {view->left,        view->crop_width,  view->resized_width,
                         view->window_left, view->place_width, shrink};
  struct buffer *scratch = &worker->scratch;
  if (shrink > 1) return resize_shrunk(source, &rows, &columns, view->flip, out, scratch);
  int same = view->crop_height == view->resized_height && view->crop_width == view->resized_width;
  if (same) {
    copy_pixels(source, view, out);
    return DONE;
  }
  switch (method) {
    case LINEAR:
      return resize_linear(source, &rows, &columns, view->flip, out, scratch);
    case ANTIALIASED:
    case CUBIC_ANTIALIASED:
      return resize_antialiased(source, &rows, &columns, method == CUBIC_ANTIALIASED,
                                view->flip, out, scratch);
    case NEAREST:
      return resize_nearest(source, &rows, &columns, view->flip, out, scratch);
    default:
      return NOT_TAKEN;
  }
}

enum status shardio_resize(struct worker *worker, const struct picture *source,
                           const struct view *view, const struct picture *out) {
  int is_whole = view->shrink > 1 || (source->height >= view->crop_height &&
                                      source->width >= view->crop_width);
  if (!is_whole || view->shrink < 1 || view->crop_height < 1 || view->crop_width < 1 ||
      view->window_top < 0 || view->place_height > view->resized_height - view->window_top ||
      view->window_left < 0 || view->place_width > view->resized_width - view->window_left ||
      out->height != view->place_height || out->width != view->place_width ||
      out->channels != source->channels)
    return NOT_TAKEN;
  return resize(worker, source, view, (enum method)view->method, view->shrink, out);
}

/* The part of a slot that a view fills. */
static struct picture part_of_slot(const struct field *field, const struct view *view,
                                   int64_t index) {
  ptrdiff_t stride = (ptrdiff_t)field->width * field->channels;
  uint8_t *slot = field->out + index * field->stride;
  struct picture part = {slot + view->place_top * stride +
                             (ptrdiff_t)view->place_left * field->channels,
                         stride, view->place_height, view->place_width, field->channels};
  return part;
}

static enum status decode_jpeg(struct worker *worker, const uint8_t *data, size_t size,
                               const struct field *field, const struct view *view, int to_end,
                               struct picture *found, int32_t *shrink) {
  struct jpeg_header header;
  if (field->channels == 4 || jpeg_probe(data, size, &header) != DONE) return NOT_TAKEN;
  if (!is_as_known(view, field, header.height, header.width, header.orientation) ||
      !is_within_limits(field, header.height, header.width, size, header.scans))
    return NOT_TAKEN;
  *shrink = view->shrink;
  if (header.orientation != 1 && (header.height % *shrink || header.width % *shrink))
    return NOT_TAKEN; /* where a turned picture at a part of its size begins is no whole pixel */
  struct box box = as_stored(needed_box(view), header.orientation, view->height, view->width);
  struct jpeg_region region = {box.top, box.left, box.bottom,      box.right,
                               *shrink, field->channels, to_end || !header.has_plain_end};
  enum status status =
      jpeg_pixels(worker->jpeg, data, size, &header, &region, found, &worker->pixels);
  if (status == DONE && header.orientation != 1)
    return turn(found, header.orientation, &worker->turned);
  return status;
}

/* Decodes a PNG, and finds the crop in it. */
static enum status decode_png(struct worker *worker, const uint8_t *data, size_t size,
                              const struct field *field, const struct view *view,
                              struct picture *found) {
  struct png png;
  enum status status = png_probe(data, size, &png);
  if (status != DONE) return status;
  if (!is_as_known(view, field, png.height, png.width, png.orientation) ||
      !is_within_limits(field, png.height, png.width, size, 1))
    return NOT_TAKEN;
  size_t stride = (size_t)png.width * (size_t)field->channels;
  uint8_t *pixels = buffer_take(&worker->pixels, stride * (size_t)png.height);
  if (pixels == NULL) return NO_MEMORY;
  struct picture whole = {pixels, (ptrdiff_t)stride, png.height, png.width, field->channels};
  status = field->kind == VALUES
               ? png_values(data, size, &png, pixels, whole.stride, &worker->scratch)
               : png_pixels(data, size, &png, field->channels, pixels, whole.stride,
                            &worker->scratch);
  if (status == DONE && png.orientation != 1)
    status = turn(&whole, png.orientation, &worker->turned);
  whole.pixels += view->top * whole.stride + (ptrdiff_t)view->left * field->channels;
  whole.height = view->crop_height;
  whole.width = view->crop_width;
  *found = whole;
  return status;
}

static enum status fill_picture(struct worker *worker, const struct samples *all,
                                const struct field *field, int64_t index, const uint8_t *data,
                                size_t size, struct totals *totals) {
  const struct view *view = &all->views[field->role * all->length + index];
  struct picture found, out = part_of_slot(field, view, index);
  int32_t shrink = 1;
  int64_t began = now();
  int is_png = size > 4 && memcmp(data, "\x89PNG", 4) == 0;
  enum status status = NOT_TAKEN;
  if (!is_sound(view, field)) return status;
  if (is_png)
    status = decode_png(worker, data, size, field, view, &found);
  else if (field->kind == PICTURE)
    status = decode_jpeg(worker, data, size, field, view, all->checksums == NULL, &found, &shrink);
  int64_t decoded = now();
  totals->decode += decoded - began;
  enum method method = field->kind == VALUES ? NEAREST : (enum method)view->method;
  if (status == DONE) status = resize(worker, &found, view, method, shrink, &out);
  totals->resize += now() - decoded;
  return status;
}

static int is_space(uint8_t byte) { return byte == ' ' || (byte >= '\t' && byte <= '\r'); }

/* Reads a decimal integer with white space around it; decode_cls of shardio/fields/arrays.py. */
static enum status read_number(const uint8_t *data, int64_t size, uint8_t *slot) {
  const uint8_t *end = data + size;
  while (data < end && is_space(*data)) data++;
  while (data < end && is_space(end[-1])) end--;
  int is_negative = data < end && *data == '-';
  if (is_negative) data++;
  if (data == end || end - data > MOST_DIGITS) return NOT_TAKEN;
  int64_t number = 0;
  for (; data < end; data++) {
    if (*data < '0' || *data > '9') return NOT_TAKEN;
    number = 10 * number + (*data - '0');
  }
  if (is_negative) number = -number;
  memcpy(slot, &number, sizeof number);
  return DONE;
}

static enum status fill_field(struct worker *worker, const struct samples *all, int64_t number,
                              int64_t index, struct member member, struct totals *totals) {
  const struct field *field = &all->fields[number];
  int64_t cell = number * all->length + index, size = all->sizes[cell];
  const uint8_t *data = member.bytes + (all->offsets[cell] - member.start);
  uint8_t *slot = field->out + index * field->stride;
  if (field->kind == PICTURE || field->kind == VALUES)
    return fill_picture(worker, all, field, index, data, (size_t)size, totals);
  if (field->kind == NUMBER) return read_number(data, size, slot);
  int64_t rest = size - field->prefix_size;
  if (rest < 0 || rest > field->stride) return NOT_TAKEN;
  if (field->kind == ROW && rest != field->stride) return NOT_TAKEN;
  if (field->prefix_size && memcmp(data, field->prefix, (size_t)field->prefix_size) != 0)
    return NOT_TAKEN;
  memcpy(slot, data + field->prefix_size, (size_t)rest);
  memset(slot + rest, 0, (size_t)(field->stride - rest));
  return DONE;
}

/* Reads the header of a picture file; 0 for one that the core does not take. */
static int probe(const uint8_t *data, size_t size, int32_t *height, int32_t *width,
                 int32_t *orientation) {
  struct jpeg_header header;
  struct png png;
  if (jpeg_probe(data, size, &header) == DONE) {
    *height = header.height;
    *width = header.width;
    *orientation = header.orientation;
    return 1;
  }
  if (png_probe(data, size, &png) != DONE) return 0;
  *height = png.height;
  *width = png.width;
  *orientation = png.orientation;
  return 1;
}

void shardio_probe(struct worker *worker, const struct samples *all, int64_t field, int64_t start,
                   int64_t stop, int32_t *sizes) {
  for (int64_t index = start; index < stop; index++) {
    int64_t cell = field * all->length + index, size = all->sizes[cell];
    int32_t height, width, orientation, *out = sizes + 3 * index;
    out[0] = out[1] = out[2] = 0;
    if (all->status[index] != DONE || size < 1 || size > MOST_READ) continue;
    uint8_t *data = buffer_take(&worker->file, (size_t)size);
    if (data == NULL || read_at(all->files[index], data, size, all->offsets[cell]) != DONE) continue;
    if (!probe(data, (size_t)size, &height, &width, &orientation)) continue;
    out[0] = orientation >= 5 ? width : height;
    out[1] = orientation >= 5 ? height : width;
    out[2] = orientation;
  }
}

/* Lets go of buffers that a huge picture has made large. */
static void shrink_buffers(struct worker *worker) {
  struct buffer *buffers[] = {&worker->file, &worker->pixels, &worker->turned, &worker->scratch};
  for (size_t each = 0; each < sizeof buffers / sizeof *buffers; each++)
    if (buffers[each]->size > MOST_KEPT) buffer_free(buffers[each]);
}

void shardio_fill(struct worker *worker, const struct samples *all, int64_t start, int64_t stop,
                  struct totals *totals) {
  struct member members[MOST_FIELDS];
  for (int64_t index = start; index < stop; index++) {
    if (all->status[index] != DONE) continue;
    int64_t began = now();
    enum status status = all->num_fields <= MOST_FIELDS ? read_sample(worker, all, index, members)
                                                        : NOT_TAKEN;
    totals->read += now() - began;
    for (int64_t field = 0; field < all->num_fields && status == DONE; field++)
      status = fill_field(worker, all, field, index, members[field], totals);
    all->status[index] = (uint8_t)status;
    totals->samples += status == DONE;
    for (int64_t field = 0; field < all->num_fields && status == DONE; field++)
      totals->bytes += all->sizes[field * all->length + index];
    shrink_buffers(worker);
  }
}
