"""CTranslate2 behind a plain gRPC server with dynamic batching, as one would write it: Dragoman's peer under load.

    python -m benchmarks.peers.ctranslate2_server MODEL TOKENIZER --address 127.0.0.1:50052 --max-batch 32

Runs in an environment of its own (ctranslate2, grpcio, protobuf, sentencepiece), with this checkout on PYTHONPATH for
the generated messages; started by `ctranslate2_process`. MODEL is a converted model whose tokens are named by their
ids, TOKENIZER the SentencePiece file of the served bundle. Of the interface it answers TranslateText with one sentence
an item, and of the options it knows `beam_size`. It leaves out whatever costs time and is not compared: segmenting,
scores, token lists, metrics, limits. How it makes batches: `batcher`.
"""

import argparse
import asyncio
import signal
from collections.abc import Iterable

import ctranslate2
import grpc
import grpc.aio
import sentencepiece

from benchmarks.peers.batcher import Batcher
from benchmarks.peers.ctranslate2_convert import token
from service.pb.translation.v1 import translation_pb2 as pb

EOS_ID = 3
METHOD = "TranslateText"
SERVICE = "translation.v1.TranslationService"
SPACE = "\u2581"
MAX_TARGET_TOKENS = 256
"""As the other server's default; like it, a batch's limit is three tokens for each source token and 16 besides."""
STOP_SECONDS = 5.0


class Text:
    """Sentences to tokens as the model was trained on, and back. Tokens are named by their ids."""

    def __init__(self, model: str) -> None:
        self._processor = sentencepiece.SentencePieceProcessor(model_file=model)
        size = self._processor.GetPieceSize()
        self._names = [token(i) for i in range(size)]
        self._ids = {name: i for i, name in enumerate(self._names)}
        self._space_id = self._processor.PieceToId(SPACE)

    def encode(self, text: str) -> list[str]:
        """Tokens of a sentence, end of sentence included."""
        ids = self._processor.EncodeAsIds(" ".join(text.split()))
        if ids and ids[0] == self._space_id:
            ids = ids[1:]
        return [*map(self._names.__getitem__, ids), self._names[EOS_ID]]

    def decode(self, tokens: Iterable[str]) -> str:
        """Text of target tokens."""
        text: str = self._processor.DecodeIds([self._ids[token] for token in tokens])
        return text


class Servicer:
    """TranslateText, and nothing else."""

    def __init__(self, text: Text, batcher: Batcher) -> None:
        self._text = text
        self._batcher = batcher

    async def translate_text(
        self, request: pb.TranslateTextRequest, _: "grpc.aio.ServicerContext"
    ) -> pb.TranslateTextResponse:
        """Each item is one sentence."""
        sources = [self._text.encode(text) for text in request.contents]
        beam_size = request.decoding_options.beam_size or 1
        if len(sources) == 1:
            targets = [await self._batcher.translate(sources[0], beam_size)]
        else:
            targets = await asyncio.gather(*(self._batcher.translate(source, beam_size) for source in sources))
        return pb.TranslateTextResponse(
            translations=[pb.Translation(translated_text=self._text.decode(target)) for target in targets],
            metadata=pb.ResponseMetadata(
                num_source_tokens=sum(map(len, sources)), num_target_tokens=sum(len(target) + 1 for target in targets)
            ),
        )


async def serve(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT."""
    translator = ctranslate2.Translator(
        arguments.model,
        compute_type=arguments.compute_type,
        inter_threads=arguments.inter_threads,
        intra_threads=arguments.intra_threads,
    )

    def translate(sources: list[list[str]], beam_size: int) -> list[list[str]]:
        """A batch, in a worker's thread; the interpreter's lock is free while CTranslate2 works."""
        results = translator.translate_batch(
            sources,
            beam_size=beam_size,
            max_batch_size=arguments.split,
            max_input_length=0,
            max_decoding_length=min(MAX_TARGET_TOKENS, 3 * max(map(len, sources)) + 16),
        )
        return [result.hypotheses[0] for result in results]

    batcher = Batcher(
        translate,
        max_batch=arguments.max_batch,
        max_wait_seconds=arguments.max_wait_ms / 1000,
        workers=arguments.workers or arguments.inter_threads,
    )
    servicer = Servicer(Text(arguments.tokenizer), batcher)
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.translate_text,
        request_deserializer=pb.TranslateTextRequest.FromString,
        response_serializer=pb.TranslateTextResponse.SerializeToString,
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(arguments.address)
    await server.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    print(
        f"Serving on {arguments.address}: CTranslate2 {ctranslate2.__version__} {translator.compute_type}", flush=True
    )
    await stopped.wait()
    await server.stop(STOP_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of the converted model")
    parser.add_argument("tokenizer", help="SentencePiece model")
    parser.add_argument("--address", required=True, help="loopback host:port")
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--max-batch", type=int, default=32, help="sentences a batch at most")
    parser.add_argument("--max-wait-ms", type=float, default=0.0, help="how long the oldest waits for company")
    parser.add_argument("--inter-threads", type=int, default=2, help="batches translated side by side")
    parser.add_argument("--intra-threads", type=int, default=1, help="threads of each")
    parser.add_argument("--workers", type=int, default=0, help="batches handed to CTranslate2 at once (0: inter)")
    parser.add_argument(
        "--split", type=int, default=0, help="CTranslate2's own max_batch_size: it sorts by length and splits; 0: not"
    )
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
