/* JPEG: the part of a picture that a crop needs, by libjpeg-turbo.
 *
 * The header is walked here first, so that libjpeg sees only files whose size, coding and sampling
 * of colours are of the common kinds. Columns beside the crop are neither transformed nor
 * converted (jpeg_crop_scanline), nor are rows above it (jpeg_skip_scanlines). Where a checksum says
 * that the data are those that were packed, the rows below are decoded as far as the Python path
 * does, and it notices damage there; otherwise all are. Any warning of libjpeg gives the file back.
 *
 * Upsampling of colours looks at neighbours, so a margin is decoded beside the crop: the pixels are
 * those of the whole picture. The settings are TurboJPEG's own: accurate DCT, fancy upsampling.
 */
#include "core.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

enum { MARGIN = 8, BELOW = 4, MOST_SEGMENTS = 1000, MOST_SIDE = 65500, LINES = 16 };

struct failure {
  struct jpeg_error_mgr base;
  jmp_buf place;
};

struct jpeg {
  struct jpeg_decompress_struct reader;
  struct failure failure;
};

static void give_up(j_common_ptr reader) { longjmp(((struct failure *)reader->err)->place, 1); }

static void give_up_at_warning(j_common_ptr reader, int level) {
  if (level < 0) give_up(reader);
}

static void say_nothing(j_common_ptr reader) { (void)reader; }

struct jpeg *jpeg_new(void) {
  struct jpeg *volatile jpeg = calloc(1, sizeof *jpeg); /* longjmp may come back to it */
  if (jpeg == NULL) return NULL;
  jpeg->reader.err = jpeg_std_error(&jpeg->failure.base);
  jpeg->failure.base.error_exit = give_up;
  jpeg->failure.base.emit_message = give_up_at_warning;
  jpeg->failure.base.output_message = say_nothing;
  if (setjmp(jpeg->failure.place)) {
    free(jpeg);
    return NULL;
  }
  jpeg_create_decompress(&jpeg->reader);
  return jpeg;
}

void jpeg_free(struct jpeg *jpeg) {
  if (jpeg == NULL) return;
  if (!setjmp(jpeg->failure.place)) jpeg_destroy_decompress(&jpeg->reader);
  free(jpeg);
}

static uint32_t two_bytes(const uint8_t *data) { return (uint32_t)data[0] << 8 | data[1]; }

static int begins(const uint8_t *data, size_t size, const char *prefix, size_t length) {
  return size >= length && memcmp(data, prefix, length) == 0;
}

/* The samplings that TurboJPEG has names for: colours at full size, or luma 2x1, 2x2, 1x2, 4x1. */
static int is_common_sampling(const uint8_t *frame, int components) {
  if (components == 1) return 1;
  for (int each = 1; each < 3; each++)
    if (frame[9 + 3 * each] != 0x11) return 0;
  int luma = frame[9];
  return luma == 0x11 || luma == 0x21 || luma == 0x22 || luma == 0x12 || luma == 0x41;
}

static size_t count_scans(const uint8_t *data, size_t size, size_t at) {
  size_t scans = 1;
  const uint8_t *found;
  while (at + 1 < size && (found = memchr(data + at, 0xFF, size - at - 1)) != NULL) {
    scans += found[1] == 0xDA;
    at = (size_t)(found - data) + 1;
  }
  return scans;
}

/* Tells whether the end of the image is the first marker in a scan, but for restarts where there are
 * any. Another is a sign of damage, which may lie in rows that are not decoded. */
static int has_plain_end(const uint8_t *data, size_t size, size_t at, int restarts) {
  const uint8_t *found;
  while (at + 1 < size && (found = memchr(data + at, 0xFF, size - at - 1)) != NULL) {
    int marker = found[1];
    at = (size_t)(found - data) + (marker == 0xFF ? 1 : 2);
    if (marker == 0 || marker == 0xFF || (restarts && (marker & 0xF8) == 0xD0)) continue;
    return marker == 0xD9;
  }
  return 0;
}

/* Reads what a segment of kind SOF says. */
static enum status read_frame(const uint8_t *frame, uint32_t length, struct jpeg_header *header) {
  if (length < 8 || frame[2] != 8) return NOT_TAKEN;
  header->height = (int32_t)two_bytes(frame + 3);
  header->width = (int32_t)two_bytes(frame + 5);
  header->components = frame[7];
  if ((header->components != 1 && header->components != 3) ||
      length != 8u + 3u * (uint32_t)header->components)
    return NOT_TAKEN;
  if (header->height < 1 || header->width < 1 || header->height > MOST_SIDE ||
      header->width > MOST_SIDE)
    return NOT_TAKEN;
  return is_common_sampling(frame, header->components) ? DONE : NOT_TAKEN;
}

enum status jpeg_probe(const uint8_t *data, size_t size, struct jpeg_header *header) {
  size_t at = 2;
  int64_t orientation = -1;
  int has_exif = 0, has_xmp = 0, multiscan = 0, restarts = 0;
  memset(header, 0, sizeof *header);
  if (!begins(data, size, "\xff\xd8\xff", 3)) return NOT_TAKEN;
  for (int segment = 0; segment < MOST_SEGMENTS; segment++) {
    if (size - at < 4 || data[at] != 0xFF) return NOT_TAKEN;
    int marker = data[at + 1];
    uint32_t length = two_bytes(data + at + 2);
    const uint8_t *body = data + at + 2;
    if (length < 2 || length > size - at - 2) return NOT_TAKEN;
    if (marker == 0xC0 || marker == 0xC1 || marker == 0xC2) {
      if (header->components || read_frame(body, length, header) != DONE) return NOT_TAKEN;
      multiscan = marker == 0xC2;
    } else if (marker == 0xE1) {
      if (!has_exif && begins(body + 2, length - 2, "Exif\0", 6)) {
        has_exif = 1;
        orientation = exif_orientation(body + 2, length - 2);
      } else if (begins(body + 2, length - 2, "http://ns.adobe.com/xap/1.0/", 29)) {
        has_xmp = 1;
      }
    } else if (marker == 0xDA) {
      if (!header->components || length < 3) return NOT_TAKEN;
      multiscan |= body[2] < header->components;
      header->scans = multiscan ? count_scans(data, size, at + 2 + length) : 1;
      header->has_plain_end = has_plain_end(data, size, at + 2 + length, restarts);
      /* Only the Python path looks for the orientation in XMP. */
      if (orientation < 0 && has_xmp) return NOT_TAKEN;
      header->orientation = orientation >= 1 && orientation <= 8 ? (int32_t)orientation : 1;
      return DONE;
    } else if (marker == 0xDD) {
      restarts = length == 4 && two_bytes(body + 2) != 0;
    } else if (marker != 0xC4 && marker != 0xDB && marker != 0xFE &&
               (marker < 0xE0 || marker > 0xEF)) {
      return NOT_TAKEN;
    }
    at += 2 + length;
  }
  return NOT_TAKEN;
}

/* Reads rows up to one, to places that are stride bytes apart. */
static void read_rows(struct jpeg_decompress_struct *reader, uint8_t *place, ptrdiff_t stride,
                      JDIMENSION end) {
  JSAMPROW rows[LINES];
  while (reader->output_scanline < end) {
    JDIMENSION count = end - reader->output_scanline;
    if (count > LINES) count = LINES;
    for (JDIMENSION each = 0; each < count; each++) rows[each] = place + (ptrdiff_t)each * stride;
    JDIMENSION done = jpeg_read_scanlines(reader, rows, count);
    if (done == 0) give_up((j_common_ptr)reader);
    place += (ptrdiff_t)done * stride;
  }
}

static JDIMENSION smaller(JDIMENSION one, JDIMENSION other) { return one < other ? one : other; }

static void start(struct jpeg_decompress_struct *reader, const uint8_t *data, size_t size,
                  const struct jpeg_header *header, const struct jpeg_region *region) {
  jpeg_mem_src(reader, (unsigned char *)data, (unsigned long)size);
  jpeg_read_header(reader, TRUE);
  if (reader->image_height != (JDIMENSION)header->height ||
      reader->image_width != (JDIMENSION)header->width ||
      reader->num_components != header->components)
    give_up((j_common_ptr)reader);
  reader->out_color_space = region->channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
  reader->dct_method = JDCT_ISLOW;
  reader->do_fancy_upsampling = TRUE;
  reader->scale_num = 1;
  reader->scale_denom = (unsigned)region->shrink;
  jpeg_start_decompress(reader);
}

/* Returns up to which row, at full size, the Python path decodes for the rows of a region; after
 * restart markers one row of blocks more, in which what lies before the next marker is noticed. */
static JDIMENSION checked_rows(const struct jpeg_decompress_struct *reader,
                               const struct jpeg_region *region) {
  JDIMENSION rows = (JDIMENSION)(region->bottom + BELOW * region->shrink);
  JDIMENSION interval = reader->restart_interval;
  if (interval == 0) return rows;
  int is_one = reader->num_components == 1; /* whose blocks are not interleaved */
  JDIMENSION down = 8 * (JDIMENSION)(is_one ? 1 : reader->max_v_samp_factor);
  JDIMENSION wide = 8 * (JDIMENSION)(is_one ? 1 : reader->max_h_samp_factor);
  JDIMENSION across = (reader->image_width - 1) / wide + 1, step = down;
  while (step / down * across % interval != 0) step += down;
  return ((rows - 1) / step + 1) * step + down;
}

/* Decodes a region; an error or a warning leaves by longjmp. */
static enum status decode(struct jpeg_decompress_struct *reader, const struct jpeg_region *region,
                          struct picture *out, struct buffer *buffer) {
  int whole = region->shrink > 1;
  JDIMENSION shrink = (JDIMENSION)region->shrink, around = whole ? 1 : 0;
  JDIMENSION height = reader->output_height, width = reader->output_width;
  JDIMENSION top = (JDIMENSION)region->top / shrink, left = (JDIMENSION)region->left / shrink;
  JDIMENSION bottom = smaller(((JDIMENSION)region->bottom - 1) / shrink + 1 + around, height);
  JDIMENSION right = smaller(((JDIMENSION)region->right - 1) / shrink + 1 + around, width);
  top -= top ? around : 0;
  left -= left ? around : 0;
  JDIMENSION first = left > MARGIN ? left - MARGIN : 0;
  JDIMENSION columns = smaller(right + MARGIN, width) - first;
  if (columns < width) jpeg_crop_scanline(reader, &first, &columns);
  size_t channels = (size_t)region->channels;
  size_t stride = (whole ? width : columns) * channels;
  size_t rows = whole ? height : bottom - top;
  uint8_t *room = buffer_take(buffer, (rows + 1) * stride);
  if (room == NULL) {
    jpeg_abort_decompress(reader);
    return NO_MEMORY;
  }
  if (top > 0 && jpeg_skip_scanlines(reader, top) != top) give_up((j_common_ptr)reader);
  uint8_t *place = whole ? room + top * stride + first * channels : room;
  read_rows(reader, place, (ptrdiff_t)stride, bottom);
  JDIMENSION last = smaller((checked_rows(reader, region) - 1) / shrink + 1, height);
  if (region->to_end || bottom == height) last = height;
  read_rows(reader, room + rows * stride, 0, last);
  if (last == height) {
    jpeg_finish_decompress(reader);
  } else {
    jpeg_abort_decompress(reader);
  }
  out->pixels = whole ? room : room + (left - first) * channels;
  out->stride = (ptrdiff_t)stride;
  out->height = (int32_t)rows;
  out->width = (int32_t)(whole ? width : right - left);
  out->channels = region->channels;
  return DONE;
}

enum status jpeg_pixels(struct jpeg *jpeg, const uint8_t *data, size_t size,
                        const struct jpeg_header *header, const struct jpeg_region *region,
                        struct picture *out, struct buffer *buffer) {
  if (region->top < 0 || region->left < 0 || region->top >= region->bottom ||
      region->left >= region->right || region->bottom > header->height ||
      region->right > header->width)
    return NOT_TAKEN;
  if (setjmp(jpeg->failure.place)) {
    jpeg_abort_decompress(&jpeg->reader);
    return UNSOUND;
  }
  start(&jpeg->reader, data, size, header, region);
  return decode(&jpeg->reader, region, out, buffer);
}
