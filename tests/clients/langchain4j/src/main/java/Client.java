// What `langchain4j-ollama` does: chat, stream, tools, structured answers, embeddings. The server's URL is the only argument.
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import dev.langchain4j.agent.tool.ToolExecutionRequest;
import dev.langchain4j.agent.tool.ToolSpecification;
import dev.langchain4j.data.embedding.Embedding;
import dev.langchain4j.data.message.AiMessage;
import dev.langchain4j.data.message.ChatMessage;
import dev.langchain4j.data.message.ToolExecutionResultMessage;
import dev.langchain4j.data.message.UserMessage;
import dev.langchain4j.data.segment.TextSegment;
import dev.langchain4j.model.chat.request.ChatRequest;
import dev.langchain4j.model.chat.request.ResponseFormat;
import dev.langchain4j.model.chat.request.ResponseFormatType;
import dev.langchain4j.model.chat.request.json.JsonObjectSchema;
import dev.langchain4j.model.chat.request.json.JsonRawSchema;
import dev.langchain4j.model.chat.request.json.JsonSchema;
import dev.langchain4j.model.chat.response.ChatResponse;
import dev.langchain4j.model.chat.response.StreamingChatResponseHandler;
import dev.langchain4j.model.ollama.OllamaChatModel;
import dev.langchain4j.model.ollama.OllamaEmbeddingModel;
import dev.langchain4j.model.ollama.OllamaStreamingChatModel;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class Client {
    static final ObjectMapper json = new ObjectMapper();
    static String url;

    static void say(String verb, Object value) throws Exception {
        System.out.println(verb + "\t" + json.writeValueAsString(value));
    }

    static OllamaChatModel model(String name, int count, double temperature) {
        return OllamaChatModel.builder().baseUrl(url).modelName(name).numPredict(count).temperature(temperature).maxRetries(0).timeout(Duration.ofMinutes(5)).build();
    }

    static ChatResponse streamed(String name, int count, ChatRequest request, List<String> pieces) throws Exception {
        CompletableFuture<ChatResponse> end = new CompletableFuture<>();
        OllamaStreamingChatModel.builder().baseUrl(url).modelName(name).numPredict(count).temperature(0.0).timeout(Duration.ofMinutes(5)).build()
            .chat(request, new StreamingChatResponseHandler() {
                @Override public void onPartialResponse(String piece) { pieces.add(piece); }
                @Override public void onCompleteResponse(ChatResponse whole) { end.complete(whole); }
                @Override public void onError(Throwable error) { end.completeExceptionally(error); }
            });
        return end.get();
    }

    static List<Map<String, Object>> called(AiMessage message) throws Exception {
        List<Map<String, Object>> calls = new ArrayList<>();
        for (ToolExecutionRequest call : message.toolExecutionRequests()) {
            JsonNode arguments = json.readTree(call.arguments());
            calls.add(Map.of("name", call.name(), "arguments", arguments));
        }
        return calls;
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        UserMessage hello = UserMessage.from("What is the capital of France?");
        say("chat", model("smollm2", 8, 0).chat(hello).aiMessage().text());
        List<String> pieces = new ArrayList<>();
        streamed("smollm2", 8, ChatRequest.builder().messages(hello).build(), pieces);
        say("stream", pieces);

        ToolSpecification tool = ToolSpecification.builder().name("get_weather").description("The weather in a city now")
            .parameters(JsonObjectSchema.builder().addStringProperty("city").required("city").build()).build();
        UserMessage asked = UserMessage.from("What is the weather in Nairobi?");
        ChatRequest weather = ChatRequest.builder().messages(asked).toolSpecifications(tool).build();
        AiMessage answer = model("caller", 60, 0).chat(weather).aiMessage();
        say("tool", called(answer));
        say("tool-stream", called(streamed("caller", 60, weather, new ArrayList<>()).aiMessage()));
        List<ChatMessage> turns = new ArrayList<>(List.of(asked, answer));
        for (ToolExecutionRequest call : answer.toolExecutionRequests()) {
            turns.add(ToolExecutionResultMessage.from(call, "21 degrees and sunny"));
        }
        say("tool-result", model("caller", 60, 0).chat(ChatRequest.builder().messages(turns).toolSpecifications(tool).build()).aiMessage().text());

        // Its own classes of schemas have no limits, and a small model's list may then never end.
        String schema = """
            {"type": "object", "required": ["name", "kind", "districts"], "additionalProperties": false, "properties": {
             "name": {"type": "string", "maxLength": 16}, "kind": {"enum": ["capital", "port", "village"]},
             "districts": {"type": "array", "items": {"type": "string", "maxLength": 16}, "minItems": 1, "maxItems": 2}}}""";
        JsonSchema city = JsonSchema.builder().name("city").rootElement(JsonRawSchema.from(schema)).build();
        ResponseFormat format = ResponseFormat.builder().type(ResponseFormatType.JSON).jsonSchema(city).build();
        ChatRequest describe = ChatRequest.builder().messages(UserMessage.from("Describe Paris as JSON.")).responseFormat(format).build();
        say("structured", json.readTree(model("smollm2", 300, 0.8).chat(describe).aiMessage().text()));

        List<TextSegment> texts = List.of(TextSegment.from("one"), TextSegment.from("two"));
        List<Embedding> vectors = OllamaEmbeddingModel.builder().baseUrl(url).modelName("all-minilm").build().embedAll(texts).content();
        say("embed", vectors.stream().map(Embedding::vector).toList());
        try {
            model("nobody", 8, 0).chat(hello);
            throw new IllegalStateException("an unknown model was not refused");
        } catch (dev.langchain4j.exception.ModelNotFoundException error) {
            say("refused", Map.of("verb", "unknown", "status", 404, "message", error.getMessage()));
        }
    }
}
