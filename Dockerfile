# One image for every mode: `docker run elastic serve-model --port 8081 --host 0.0.0.0`. docs/image.md tells more.
#
# What runs is one static executable on nothing at all: no C library, shell or package manager to keep up to date or to
# be found in by somebody else. It is static by glibc (`+crt-static`), not musl: inference allocates from several threads
# at once, where musl's allocator is known to be slow, and ring and the kernels are built and tested by their authors on
# glibc first. What makes a static glibc a trap is names: getaddrinfo wants the very shared libraries it was linked
# against for whatever /etc/nsswitch.conf says, and holds a thread as long as a name server is silent. So names are
# resolved by `src/net/names.rs`, which needs neither.
ARG BUILDER_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=scratch

FROM ${BUILDER_IMAGE} AS builder
WORKDIR /src
# The target is named though it is the builder's own: then the flags are for the executable alone, and procedural
# macros stay shared libraries.
ENV CARGO_INCREMENTAL=0 CARGO_NET_RETRY=5 RUSTFLAGS="-C target-feature=+crt-static"
# Dependencies are downloaded in a layer of their own, which stays until the lock file changes. Cargo wants to
# see a target before it reads a manifest, hence the empty files.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,id=elastic-registry,target=/usr/local/cargo/registry,sharing=locked \
    mkdir src && touch src/lib.rs src/main.rs && cargo fetch --locked
COPY scripts/licences.sh ./scripts/licences.sh
COPY src ./src
COPY weights ./weights
# The cache keeps what was compiled from one build of the image to the next. It is not part of the layer, so
# the executable is copied out of it. A file newer than the cache is what makes cargo look again.
# With the default network's weights in a file, the executable does without the float weights of the other network
# (feature `embed-float`, 9 MB) and keeps its int8 ones. Packed relocations are 1 MB less of it.
RUN --mount=type=cache,id=elastic-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=elastic-target,target=/src/target,sharing=locked \
    find src -type f -exec touch {} + \
    && host="$(rustc -vV | sed -n 's/^host: //p')" \
    && features="" \
    && if [ -f weights/mobilenet_v2.safetensors ]; then features=--no-default-features; fi \
    && cargo rustc --release --locked --target "$host" $features --bin elastic -- \
        -C link-arg=-Wl,-z,pack-relative-relocs \
    && install -D "target/$host/release/elastic" /out/elastic \
    && /out/elastic --version \
    && sh scripts/licences.sh --target "$host" $features >/out/crates.txt
# The default network's weights where `make weights` has put them. The other network is inside the executable,
# so an image without them works too. Certificates are for fetching weights; an API server's is mounted into the pod.
RUN mkdir -p /out/weights /out/licenses /out/etc/ssl/certs \
    && for file in mobilenet_v2.safetensors imagenet_classes.txt; do \
        if [ -f "weights/$file" ]; then cp "weights/$file" /out/weights/; fi; \
    done \
    && cp weights/LICENSE-* /out/licenses/ \
    && cp weights/README.md /out/licenses/weights.md \
    && mv /out/crates.txt /out/licenses/crates.txt \
    && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
    && chmod -R a+rX /out
COPY LICENSE /out/licenses/LICENSE

FROM ${RUNTIME_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="elastic" \
      org.opencontainers.image.description="An image-classification service that keeps its latency promise by itself" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /out/etc /etc
COPY --from=builder /out/licenses /licenses
COPY --from=builder /out/weights /weights
COPY --from=builder /out/elastic /elastic
# A number, so that Kubernetes can see by itself that it is not root (runAsNonRoot).
USER 65532:65532
WORKDIR /
ENV ELASTIC_WEIGHTS_DIR=/weights
# dispatch, serve-model, autoscale, monitor
EXPOSE 8080 8081 8083 8090
ENTRYPOINT ["/elastic"]
CMD ["--help"]
