#!/bin/sh
# Builds a static libjpeg-turbo for wheels: tools/build_libjpeg.sh PREFIX [SOURCE]
#
# The version is that of simplejpeg's wheels, whose pixels the native core must have. SOURCE is a
# folder with the sources, which are otherwise fetched. cmake is required, and nasm on x86.
set -eu
version=3.1.2
sha256=8f0012234b464ce50890c490f18194f913a7b1f4e6a03d6644179fa0f867d0cf

mkdir -p "$1"
prefix=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
source=${2:-$work/libjpeg-turbo-$version}
if [ $# -lt 2 ]; then
  curl -fsSL --retry 3 -o "$work/source.tar.gz" \
    "https://github.com/libjpeg-turbo/libjpeg-turbo/releases/download/$version/libjpeg-turbo-$version.tar.gz"
  # macOS has shasum, and Linux images have sha256sum.
  echo "$sha256  $work/source.tar.gz" | { sha256sum -c - || shasum -a 256 -c -; }
  tar -xzf "$work/source.tar.gz" -C "$work"
fi
case $(uname -m) in x86_64 | i?86) simd=-DREQUIRE_SIMD=1 ;; *) simd= ;; esac
cmake -S "$source" -B "$work/build" -DCMAKE_INSTALL_PREFIX="$prefix" -DCMAKE_INSTALL_LIBDIR=lib \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON \
  -DENABLE_SHARED=OFF -DWITH_TURBOJPEG=OFF $simd
cmake --build "$work/build" --parallel 2
cmake --install "$work/build"
