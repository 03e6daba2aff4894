# One image for every mode: `docker run elastic serve-model --port 8081 --host 0.0.0.0`.
#
# Why glibc and distroless/cc and not a static musl binary on scratch: inference allocates large buffers from
# several threads at once, where musl's allocator is known to be slow, and ring and the matrix kernels are built
# and tested by their authors on glibc first. distroless/cc holds little more than glibc, libgcc (unwinding) and CA
# certificates (for fetching weights); there is no shell and no package manager. The builder is Debian 12 too,
# so both have the same glibc.
ARG BUILDER_IMAGE=rust:1.95-bookworm
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILDER_IMAGE} AS builder
WORKDIR /src
ENV CARGO_INCREMENTAL=0 CARGO_NET_RETRY=5
# Dependencies are downloaded in a layer of their own, which stays until the lock file changes. Cargo wants to
# see a target before it reads a manifest, hence the empty file.
COPY Cargo.toml Cargo.lock ./
RUN --mount=type=cache,id=elastic-registry,target=/usr/local/cargo/registry,sharing=locked \
    mkdir src && touch src/lib.rs && touch src/main.rs && cargo fetch --locked
COPY src ./src
COPY weights ./weights
# The cache keeps what was compiled from one build of the image to the next. It is not part of the layer, so
# the executable is copied out of it. A file newer than the cache is what makes cargo look again.
RUN --mount=type=cache,id=elastic-registry,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=elastic-target,target=/src/target,sharing=locked \
    find src -type f -exec touch {} + \
    && cargo build --release --locked --bin elastic \
    && install -D target/release/elastic /out/elastic
# The default network's weights where `make weights` has put them. The other network is inside the executable,
# so an image without them works too.
RUN mkdir -p /out/weights /out/licenses \
    && for file in mobilenet_v2.safetensors imagenet_classes.txt; do \
        if [ -f "weights/$file" ]; then cp "weights/$file" /out/weights/; fi; \
    done \
    && if [ -f weights/README.md ]; then cp weights/README.md /out/licenses/weights.md; fi \
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
